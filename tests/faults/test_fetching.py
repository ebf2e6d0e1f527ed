"""Data sets that are fetched into the cache: kills, two processes, full disks, and room that has to be made."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from steadyolo.data.cache import CacheEntry
from steadyolo.errors import UserError
from steadyolo.testing.memory_store import MemoryStore
from steadyolo.testing.power_loss import RecordingCalls, _Change, materialise, outcomes
from steadyolo.vault.disk import LocalDisk
from steadyolo.vault.folder_store import FolderStore
from tests.faults.mirroring import CHANGES, is_sound, mirror, put_all
from tests.unit.data.stored import FILES, WatchedStore, contents, fetch, filled, held

TIMEOUT_S = 60


def start(deed: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.faults.mirroring", deed, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def result(child: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = child.communicate(timeout=TIMEOUT_S)
    assert child.returncode == 0
    told: dict[str, Any] = json.loads(out.splitlines()[-1])
    return told


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def num_arrived(cache: Path) -> int:
    return sum(path.is_file() for path in cache.glob("*/files/**/*"))


def grew(cache: Path, num_before: int, child: subprocess.Popen[str]) -> bool:
    """Whether some files have arrived; at the latest when the child is over."""
    return num_arrived(cache) > num_before + 1 or child.poll() is not None


@pytest.fixture
def store(quick_path: Path) -> Path:
    """A folder store with a small data set."""
    filled(FolderStore(quick_path / "store"))
    return quick_path / "store"


def test_a_kill_at_any_call_loses_nothing_that_arrived(quick_path: Path) -> None:
    report = result(start("kill_everywhere", quick_path))
    assert report["num_points"] > 60
    assert report["survivors"] == [], "no fault happened there, so this proves nothing"
    assert report["flaws"] == []


class Recorder(RecordingCalls):
    """Knows renames between folders: each of the two may have been noted without the other."""

    def rename(self, src: Path, dst: Path, /) -> None:
        if src.parent == dst.parent:
            super().rename(src, dst)
            return
        node = self._node(src)
        os.rename(src, dst)
        self._parent(dst).apply(_Change(None, dst.name, node))
        self._parent(src).apply(_Change(src.name, None, None))
        self._on_change()


class NoSync(Recorder):
    """Without the fsyncs of folders and files that only the data set needs."""

    def fsync(self, fd: int, /) -> None:
        if "arriving" not in os.readlink(f"/proc/self/fd/{fd}"):
            super().fsync(fd)


class NoFolderSync(Recorder):
    def fsync(self, fd: int, /) -> None:
        if not os.path.isdir(f"/proc/self/fd/{fd}"):
            super().fsync(fd)


def losses_of_power(scratch: Path, calls_type: type[Recorder]) -> tuple[int, list[str]]:
    """How many states a loss of power at any moment of a fetch may leave, and the first that is taken wrongly."""
    store, image = FolderStore(scratch / "store"), scratch / "image"
    seen: set[int] = set()
    flaws: list[str] = []
    rng = random.Random(1)

    def look() -> None:
        for outcome in outcomes(rng, num_random=4):
            found = calls.image(outcome)
            if flaws or (key := hash(tuple(found.items()))) in seen:
                continue
            seen.add(key)
            materialise(found, image)
            if not is_sound(image):
                flaws.append(f"counts as complete: {sorted(held(image))}")
            mirror(store, image, LocalDisk())
            if held(image / "pcb" / "files") != contents(store):
                flaws.append(f"cannot be mended: {sorted(found)}")
            shutil.rmtree(image)

    for before, now in CHANGES:
        cache = scratch / f"cache-{len(before)}"
        cache.mkdir()
        put_all(store, before or now)
        calls = calls_type(cache, on_change=lambda: None)
        if before:
            mirror(store, cache, LocalDisk(calls))
        put_all(store, now)
        calls._on_change = look
        mirror(store, cache, LocalDisk(calls))
    return len(seen), flaws


def test_a_data_set_survives_a_loss_of_power(quick_path: Path) -> None:
    num_images, flaws = losses_of_power(quick_path, Recorder)
    assert num_images > 100, "too few different images for this to prove something"
    assert flaws == []


@pytest.mark.parametrize("calls_type", [NoSync, NoFolderSync])
def test_every_fsync_is_needed(calls_type: type[Recorder], quick_path: Path) -> None:
    """Control."""
    assert losses_of_power(quick_path, calls_type)[1]


def test_kills_at_random_times_end_in_the_whole_data_set(store: Path, quick_path: Path) -> None:
    cache = quick_path / "cache"
    num_kills = 0
    for _ in range(3):
        before = num_arrived(cache)
        child = start("fetch_slowly", store, cache)
        wait_until(partial(grew, cache, before, child))
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=TIMEOUT_S)
        num_kills += child.returncode == -signal.SIGKILL
    assert num_kills == 3, "no fault happened, so this proves nothing"
    watched = WatchedStore(FolderStore(store))
    with fetch(watched, cache) as dataset:
        assert held(dataset.entry.files) == FILES
    assert 0 < len(watched.gets) <= len(FILES) - 6


def test_two_processes_fetch_once(store: Path, quick_path: Path) -> None:
    both = [start("fetch_together", store, quick_path / "cache") for _ in range(2)]
    told = [result(child) for child in both]
    assert (quick_path / "waiting").exists(), "they were never at it together, so this proves nothing"
    assert sorted(it["num_gets"] for it in told) == [0, len(FILES)]
    assert [it["files"] for it in told] == [len(FILES)] * 2


def test_the_lock_is_needed(store: Path, quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: without it, what one process clears away is what the other one writes."""
    cache = quick_path / "cache"
    monkeypatch.setattr("steadyolo.data.cache.FileLock.take", lambda self, shared=False: True)

    def interfere(verb: str, key: str, nth: int) -> None:
        if verb == "get" and nth == 5:
            fetch(FolderStore(store), cache).close()

    with pytest.raises(UserError, match="cannot be used"):
        fetch(WatchedStore(FolderStore(store), interfere), cache, num_parallel=1)


def test_what_a_live_process_uses_is_never_removed_and_a_kill_frees(store: Path, quick_path: Path) -> None:
    cache = quick_path / "cache"
    second = filled(MemoryStore("s3://b/second"))
    with start("hold", store, cache) as child:
        assert child.stdout
        name = child.stdout.readline().strip()
        with pytest.raises(UserError, match=f"in use by runs: {name}"):
            fetch(second, cache, "s3://b/second", budget_bytes=80_000)
        assert held(cache / name / "files") == FILES
        fetch(second, cache, "s3://b/second", budget_bytes=1_000_000).close()
        third = filled(MemoryStore("s3://b/third"))
        with fetch(third, cache, "s3://b/third", budget_bytes=130_000) as dataset:
            assert "to make room: second-" in dataset.warnings[0]
        child.send_signal(signal.SIGKILL)
        child.wait(TIMEOUT_S)
    with fetch(second, cache, "s3://b/second", budget_bytes=80_000) as dataset:
        assert any(name in warning for warning in dataset.warnings)
        assert not (cache / name).exists()


def mounting() -> list[str] | None:
    """The command that runs a shell which may mount, or None where neither kind is allowed."""
    for unshare in (["unshare", "-m"], ["unshare", "-Urm"]):
        probe = [*unshare, "sh", "-c", "mount -t tmpfs -o size=64k tmpfs /mnt"]
        if shutil.which("unshare") and subprocess.run(probe, check=False, capture_output=True).returncode == 0:
            return [*unshare, "sh", "-ec"]
    return None


def test_a_full_disk_is_told_and_nothing_is_lost(store: Path, quick_path: Path) -> None:
    shell = mounting()
    if shell is None:
        pytest.skip("no right to mount a small file system here, neither as root nor in a user namespace")
    (store / "large").mkdir()
    (store / "large" / "1.jpg").write_bytes(bytes(2_000_000))
    cache = quick_path / "cache"
    cache.mkdir()
    script = f"mount -t tmpfs -o size=1000k tmpfs '{cache}'; exec \"$@\""
    command = [sys.executable, "-m", "tests.faults.mirroring", "fill_up", str(store), str(cache)]
    done = subprocess.run(
        [*shell, script, "sh", *command], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report["told"]) == 2, "the disk was never full, so this proves nothing"
    assert "and the cache may take" in report["told"][0]
    assert report["num_gets"] == 0
    assert "No space left on device" in report["told"][1]
    assert "data.cache=" in report["told"][1]
    assert report["is_right"]
    assert 0 < report["num_gets_after"] < len(FILES)
    assert not os.listdir(cache), "it was not a file system of its own"


def test_a_removal_that_was_killed_is_finished_later(store: Path, quick_path: Path) -> None:
    cache = quick_path / "cache"
    fetch(FolderStore(store), cache).close()
    left = cache / ".removing-0123"
    left.mkdir()
    (left / "1.jpg").write_bytes(bytes(5000))
    fetch(filled(MemoryStore()), cache, "s3://b/other").close()
    assert not left.exists()


def test_folders_of_others_in_the_cache_are_left_alone(quick_path: Path) -> None:
    cache = quick_path / "cache"
    (cache / "photos").mkdir(parents=True)
    (cache / "photos" / "1.jpg").write_bytes(bytes(1_000_000))
    fetch(filled(MemoryStore()), cache, "s3://b/one", budget_bytes=100_000).close()
    entry = CacheEntry(cache, "gone")  # a lock without a folder is nothing
    entry.release()
    fetch(filled(MemoryStore()), cache, "s3://b/two", budget_bytes=80_000).close()
    assert (cache / "photos" / "1.jpg").exists()
    assert sorted(path.name[:3] for path in cache.iterdir() if not path.name.startswith(".")) == ["pho", "two"]

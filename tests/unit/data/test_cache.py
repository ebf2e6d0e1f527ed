from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from steadyolo.data.cache import CacheEntry, FileLock, taken_bytes, usual_cache
from steadyolo.errors import UserError
from steadyolo.testing.memory_store import MemoryStore
from tests.unit.data.stored import fetch, filled, held

HOLD = """
import os, sys, time
from pathlib import Path
from steadyolo.data.cache import FileLock
lock = FileLock(Path(sys.argv[1]))
held = lock.take(shared=sys.argv[2] == "shared")
if os.fork() == 0:
    os.write(1, b"%d %d\\n" % (held, os.getpid()))
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({}, "~/.cache/steadyolo/datasets"),
        ({"XDG_CACHE_HOME": "/mnt/cache"}, "/mnt/cache/steadyolo/datasets"),
        ({"STEADYOLO_CACHE": "/mnt/fast", "XDG_CACHE_HOME": "/mnt/cache"}, "/mnt/fast/datasets"),
        ({"STEADYOLO_CACHE": "", "XDG_CACHE_HOME": ""}, "~/.cache/steadyolo/datasets"),
    ],
)
def test_where_the_cache_is(environment: dict[str, str], folder: str) -> None:
    assert usual_cache(environment) == Path(folder).expanduser()


@pytest.mark.parametrize(("way", "also_shared"), [("shared", True), ("alone", False)])
def test_a_lock_holds_until_its_process_ends_whatever_its_children_do(
    tmp_path: Path, way: str, also_shared: bool
) -> None:
    path = tmp_path / "a.use"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path), way], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        was_held, worker = map(int, child.stdout.readline().split())
        try:
            assert was_held
            lock = FileLock(path)
            assert not lock.take()
            assert lock.take(shared=True) is also_shared
            child.send_signal(signal.SIGKILL)
            child.wait(10)
            os.kill(worker, 0)  # it lives on, as a loader worker may
            assert lock.take()
            lock.release()
            lock.release()
            assert not lock.take()
        finally:
            os.kill(worker, signal.SIGKILL)


def test_waiting_tells_so_and_ends(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "a"), FileLock(tmp_path / "a")
    assert first.take()
    waited: list[int] = []

    def on_wait() -> None:
        waited.append(1)
        if len(waited) == 3:
            first.release()

    second.wait(on_wait=on_wait, sleep=lambda _: None)
    assert len(waited) == 3


def test_a_lock_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be locked"):
        FileLock(tmp_path / "nowhere" / "a")


def test_the_least_recently_used_leaves(quick_path: Path) -> None:
    cache = quick_path / "cache"
    at_s = iter(range(1000, 2000))

    def use(name: str, budget_bytes: int | None = None) -> tuple[str, ...]:
        store = filled(MemoryStore(f"s3://b/{name}"))
        stores = known.setdefault(name, store)
        with fetch(stores, cache, f"s3://b/{name}", now_s=lambda: next(at_s), budget_bytes=budget_bytes) as dataset:
            names[name] = dataset.entry.name
            assert held(dataset.entry.files)
            return dataset.warnings

    known: dict[str, MemoryStore] = {}
    names: dict[str, str] = {}
    for name in ("a", "b", "c", "a"):
        assert use(name) == ()
    each_bytes = taken_bytes(cache / names["a"])
    assert each_bytes > 14 * 512
    assert use("d", 3 * each_bytes + 10_000) == (f"removed from the data cache to make room: {names['b']}",)
    assert sorted(path.name for path in cache.iterdir() if not path.name.startswith(".")) == sorted(
        names[name] for name in "acd"
    )
    assert use("a", each_bytes // 2) == (), "what is there already needs no room"


def test_stamps_never_stop_anything(tmp_path: Path) -> None:
    entry = CacheEntry(tmp_path, "pcb")
    entry.stamp("used", 5.0)
    assert entry.stamped_at_s("used") == 0.0
    entry.folder.mkdir()
    entry.stamp("used", 5.0)
    assert entry.stamped_at_s("used") == 5.0
    entry.release()

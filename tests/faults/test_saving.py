"""Saving under faults: nothing acknowledged is lost, nothing broken is loaded, and training is never stopped by a disk.

Each test proves that its fault happened. The test next to it, named `..._needed`, shows that the same check fails once
the protection is taken away.
"""

from __future__ import annotations

import ast
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

import steadyolo.vault.checkpoints as checkpoints_module
from steadyolo.errors import Transient
from steadyolo.testing.faulty_disk import FailingCalls, Fault, Operation, WatchedCalls
from steadyolo.testing.power_loss import RecordingCalls, materialise, outcomes
from steadyolo.vault.checkpoints import Checkpoints
from steadyolo.vault.disk import Disk, LocalDisk
from steadyolo.vault.writer import BackgroundWriter
from tests.faults.disks import (
    CHILDREN,
    KEEP_LAST,
    HopefulDisk,
    InPlaceDisk,
    Saving,
    acknowledged_in,
    crash_points,
    die_saving,
    exported,
    flaws,
    is_same,
    save_forever,
    snapshot,
    step_of,
)

CRASH_POINTS = crash_points()


@pytest.fixture
def run(quick_path: Path) -> Path:
    """A run's folder. Its name is fixed because crash points name files."""
    folder = quick_path / "run"
    folder.mkdir()
    return folder


# --- killed ---


def die_in_child(run: Path, point: str, disk_type: Callable[[WatchedCalls], Disk]) -> list[str]:
    """Save in a child that dies at `point`. Returns what it had acknowledged."""
    child = CHILDREN.Process(target=die_saving, args=(run, point, disk_type))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL, f"no kill at {point!r}, so this proves nothing"
    return acknowledged_in(run / "acknowledged")


def test_crash_points_cover_one_save() -> None:
    assert len(set(CRASH_POINTS)) == len(CRASH_POINTS)
    operations = {point.split()[1] for point in CRASH_POINTS}
    assert operations == {"open", "write", "fsync", "rename", "mkdir", "unlink", "rmdir"}
    for file in (
        "model.safetensors",
        "ema.safetensors",
        "state.json",
        "results.csv",
        "manifest.json",
        ".last.pt.partial",
    ):
        assert f"before fsync {file} 1" in CRASH_POINTS
        assert f"midway write {file} 1" in CRASH_POINTS


@pytest.mark.parametrize("point", CRASH_POINTS)
def test_acknowledged_saves_survive_a_kill(point: str, run: Path) -> None:
    acknowledged = die_in_child(run, point, LocalDisk)
    assert len(acknowledged) >= 2
    assert flaws(run, acknowledged[-KEEP_LAST:]) == []

    after = Saving(run, LocalDisk())  # the next process: sweeps, and can save what the dead one could not
    after.checkpoints.sweep()
    assert sorted(path.name for path in after.checkpoints.root.iterdir()) == after.checkpoints.committed()
    after.save(3)
    after.writer.close()
    assert after.failed == []
    assert flaws(run, [snapshot(2).name, snapshot(3).name]) == []


@pytest.mark.parametrize(
    "point", ["midway write state.json 1", "before open manifest.json 1", "midway write last.pt 1"]
)
def test_a_final_name_given_last_is_needed(point: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    acknowledged = die_in_child(run, point, InPlaceDisk)
    monkeypatch.setattr(checkpoints_module, "is_committed", lambda folder: folder.name.startswith("step-"))
    assert flaws(run, acknowledged[-KEEP_LAST:])


def test_acknowledged_saves_survive_kills_at_random_times(run: Path) -> None:
    rng = random.Random(0)
    num_swept = 0
    for _ in range(15):
        known = acknowledged_in(run / "acknowledged")
        newest = Checkpoints(run / "checkpoints", writer_id="reader").newest_verified().snapshot
        child = CHILDREN.Process(target=save_forever, args=(run, newest.state.step + 1 if newest else 1))
        child.start()
        deadline = time.monotonic() + 60
        while len(acknowledged_in(run / "acknowledged")) < len(known) + 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.03))
        child.kill()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL, "no kill happened, so this proves nothing"

        acknowledged = acknowledged_in(run / "acknowledged")
        assert len(acknowledged) >= len(known) + 2
        assert flaws(run, acknowledged[-KEEP_LAST:]) == []
        num_swept += len(Checkpoints(run / "checkpoints", writer_id="next").sweep())
        names = [path.name for path in (run / "checkpoints").iterdir()]
        assert all(len(name) == len(snapshot(1).name) for name in names), f"orphans were left: {names}"
    assert num_swept, "no kill hit a save in progress, so this proves nothing"


# --- damaged ---

FILES = (
    "model.safetensors",
    "ema.safetensors",
    "optimizer.safetensors",
    "gradients.safetensors",
    "state.json",
    "results.csv",
    "manifest.json",
)


def damaged(data: bytes) -> Iterator[tuple[str, bytes | None]]:
    """Ways in which a file is not what was written, at its beginning, in its middle and at its end."""
    for offset in sorted({0, 1, 8, len(data) // 3, len(data) // 2, len(data) - 2, len(data) - 1}):
        for bit in (0, 5):
            flipped = bytearray(data)
            flipped[offset] ^= 1 << bit
            yield f"bit {bit} of byte {offset} flipped", bytes(flipped)
    for kept in sorted({0, 1, len(data) // 2, len(data) - 1}):
        yield f"cut after {kept} bytes", data[:kept]
        yield f"zeroed after {kept} bytes", data[:kept] + bytes(len(data) - kept)
    yield "longer by a byte", data + b"\n"
    yield "gone", None


def two_saves(run: Path) -> Checkpoints:
    checkpoints = Checkpoints(run / "checkpoints", writer_id="writer")
    checkpoints.commit(snapshot(1), parent=None)
    checkpoints.commit(snapshot(2), parent=snapshot(1).name)
    return checkpoints


@pytest.mark.parametrize("file", FILES)
def test_damage_is_found_before_use(file: str, run: Path) -> None:
    checkpoints = two_saves(run)
    path = checkpoints.root / snapshot(2).name / file
    good = path.read_bytes()
    for how, bad in damaged(good):
        assert bad != good, f"{how}: nothing was damaged, so this proves nothing"
        path.unlink(missing_ok=True)
        if bad is not None:
            path.write_bytes(bad)
        found = checkpoints.newest_verified()
        assert found.snapshot is not None and is_same(found.snapshot, snapshot(1)), how
        [rejected] = found.rejected
        assert rejected.name == snapshot(2).name
        assert file in rejected.why, how
        with pytest.raises(checkpoints_module.DataLoss, match=file.replace(".", r"\.")):
            checkpoints.verify(rejected.name)
    path.unlink(missing_ok=True)
    path.write_bytes(good)
    assert flaws(run, [snapshot(1).name, snapshot(2).name]) == []


def test_digests_are_needed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = two_saves(run)
    path = checkpoints.root / snapshot(2).name / "model.safetensors"
    flipped = bytearray(path.read_bytes())
    flipped[-1] ^= 1
    path.write_bytes(flipped)
    monkeypatch.setattr(checkpoints_module, "_verify_file", lambda path, entry: None)
    found = checkpoints.newest_verified().snapshot
    assert found is not None and not is_same(found, snapshot(1))  # the damaged one was loaded
    assert flaws(run, [snapshot(1).name, snapshot(2).name])


def test_a_bad_checkpoint_never_pushes_a_good_one_out(run: Path) -> None:
    checkpoints = two_saves(run)
    path = checkpoints.root / snapshot(2).name / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    saving = Saving(run, LocalDisk())
    saving.save(3)
    saving.writer.close()
    assert checkpoints.committed() == [snapshot(1).name, snapshot(3).name]
    assert (checkpoints.root / f"{snapshot(2).name}.bad-1").is_dir()
    assert [name for name, _ in saving.failed] == [snapshot(2).name]


def test_verifying_before_deleting_is_needed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: without it, the same damage leaves the bad one and costs the good one before it."""
    monkeypatch.setattr(BackgroundWriter, "_verifies", lambda self, name: True)
    checkpoints = two_saves(run)
    path = checkpoints.root / snapshot(2).name / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    saving = Saving(run, LocalDisk())
    saving.save(3)
    saving.writer.close()
    assert checkpoints.committed() == [snapshot(2).name, snapshot(3).name]


# --- failing ---

FAULTS: list[tuple[Operation, Fault]] = [
    ("write", "ENOSPC"),
    ("write", "EIO"),
    ("write", "short"),
    ("write", "lying"),
    ("fsync", "ENOSPC"),
    ("fsync", "EIO"),
    ("rename", "ENOSPC"),
    ("rename", "EIO"),
    ("open", "ENOSPC"),
    ("mkdir", "ENOSPC"),
    ("unlink", "EIO"),
    ("rmdir", "EIO"),
]


def flaws_after_fault(run: Path, calls: FailingCalls, disk: Disk) -> list[str]:
    """Save twice, a third time with a fault, a fourth time without. Returns all that is wrong."""
    run.mkdir()
    saving = Saving(run, disk)
    saving.save(1)
    saving.save(2)
    before = saving.kept()
    calls.arm()
    saving.save(3)
    calls.disarm()
    if calls.num_faults == 0:
        saving.writer.close()
        return []
    found = flaws(run, saving.kept())
    if not saving.failed:
        found.append("the fault went unnoticed")
    if saving.acknowledged[:2] != before or set(saving.released) != {snapshot(step).name for step in (1, 2, 3)}:
        found.append(f"acknowledged {saving.acknowledged}, released {saving.released}")
    saving.save(4)
    saving.writer.close()
    if saving.acknowledged[-1] != snapshot(4).name:
        found.append("the next save did not succeed")
    found += flaws(run, saving.kept())
    saving.checkpoints.sweep()
    names = sorted(path.name for path in saving.checkpoints.root.iterdir())
    if names != saving.checkpoints.committed():
        found.append(f"orphans: {names}")
    return found


@pytest.mark.parametrize("keeps_failing", [False, True], ids=["once", "on"])
@pytest.mark.parametrize(("operation", "fault"), FAULTS)
def test_a_failing_call_fails_only_its_save(
    operation: Operation, fault: Fault, keeps_failing: bool, quick_path: Path
) -> None:
    num_calls = sum(point.startswith(f"before {operation} ") for point in CRASH_POINTS)
    for nth in range(num_calls):
        calls = FailingCalls({operation}, nth, fault, keeps_failing=keeps_failing)
        found = flaws_after_fault(quick_path / str(nth), calls, LocalDisk(calls))
        assert calls.num_faults, f"call {nth} did not fail, so this proves nothing"
        assert found == [], f"call {nth} of {operation}"


@pytest.mark.parametrize(("operation", "fault"), FAULTS[:8])
def test_listening_to_errors_is_needed(operation: Operation, fault: Fault, quick_path: Path) -> None:
    for nth in count():
        calls = FailingCalls({operation}, nth, fault)
        found = flaws_after_fault(quick_path / str(nth), calls, HopefulDisk(calls))
        assert calls.num_faults, "every call failed in turn and the check did not notice"
        if found:
            break


def test_a_failed_commit_raises_and_leaves_nothing(quick_path: Path) -> None:
    calls = FailingCalls({"fsync"}, 3, "EIO")
    checkpoints = Checkpoints(quick_path / "checkpoints", disk=LocalDisk(calls), writer_id="writer")
    calls.arm()
    with pytest.raises(Transient, match=r"step-00000001\.00000001 was not saved: .*Input/output error"):
        checkpoints.commit(snapshot(1), parent=None)
    assert list(checkpoints.root.iterdir()) == []
    assert sum(call.operation == "fsync" and call.file == calls.calls[-1].file for call in calls.calls) <= 1


# --- full ---


def mounting() -> list[str] | None:
    """The command that runs a shell which may mount, or None where neither kind is allowed."""
    for unshare in (["unshare", "-m"], ["unshare", "-Urm"]):
        if shutil.which("unshare") is None:
            return None
        probe = [*unshare, "sh", "-c", "mount -t tmpfs -o size=64k tmpfs /mnt"]
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            return [*unshare, "sh", "-ec"]
    return None


def test_a_full_disk_fails_only_its_save_and_listening_is_needed(tmp_path: Path) -> None:
    shell = mounting()
    if shell is None:
        pytest.skip("no right to mount a small file system here, neither as root nor in a user namespace")
    folders = [tmp_path / "protected", tmp_path / "hopeful"]
    mounts = ""
    for folder in folders:
        folder.mkdir()
        mounts += f"mount -t tmpfs -o size=640k tmpfs '{folder}'; "
    repository = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [*shell, mounts + 'exec "$@"', "sh", sys.executable, "-m", "tests.faults.disks", *map(str, folders)],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": f"{repository / 'src'}:{repository}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    assert any("No space left on device" in error for error in report["failed"]), f"the disk never was full: {report}"
    assert report["num_acknowledged"] >= 3
    assert report["is_saved_afterwards"]
    assert report["flaws"] == []
    assert report["control"], "without protection the same check must fail"


# --- power lost ---


class NoFolderSync(RecordingCalls):
    """Makes the names in folders durable only by chance."""

    def fsync(self, fd: int, /) -> None:
        if not os.path.isdir(f"/proc/self/fd/{fd}"):
            super().fsync(fd)


class NoFileSync(RecordingCalls):
    """Makes the bytes of files durable only by chance."""

    def fsync(self, fd: int, /) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            super().fsync(fd)


class NoSync(RecordingCalls):
    """Says yes and does nothing."""

    def fsync(self, fd: int, /) -> None:
        pass


class PowerLoss:
    """Saves, and looks at what every moment's possible disk images hold."""

    def __init__(self, folder: Path, calls_type: type[RecordingCalls], *, stop_at_first: bool = False) -> None:
        self.found: list[str] = []
        self.num_images = 0
        self._rng = random.Random(1)
        self._seen: set[int] = set()
        self._stop_at_first = stop_at_first
        self._image = folder / "image"
        self._run = folder / "run"
        self._run.mkdir()
        self._calls = calls_type(self._run, on_change=self._look)
        self._saving = Saving(self._run, LocalDisk(self._calls))
        for step in (1, 2, 3, 4):
            self._saving.save(step)
        self._saving.writer.close()
        assert self._saving.failed == []
        assert len(self._saving.acknowledged) == 4

    def _look(self) -> None:
        if self._stop_at_first and self.found:
            return
        wanted = self._saving.kept()
        for outcome in outcomes(self._rng, num_random=6):
            image = self._calls.image(outcome)
            key = hash((tuple(wanted), tuple(image.items())))
            if key in self._seen:
                continue
            self._seen.add(key)
            self.num_images += 1
            materialise(image, self._image)
            self.found += flaws(self._image, wanted)
            if wanted and image.get("last.pt", b"") < exported(step_of(wanted[-1])):  # type: ignore[operator]
                self.found.append(f"last.pt is older than {wanted[-1]}")
            shutil.rmtree(self._image)


def test_acknowledged_saves_survive_a_loss_of_power(quick_path: Path) -> None:
    loss = PowerLoss(quick_path, RecordingCalls)
    assert loss.num_images > 300, "too few different images for this to prove something"
    assert loss.found == []


@pytest.mark.parametrize("calls_type", [NoSync, NoFileSync, NoFolderSync])
def test_every_fsync_is_needed(calls_type: type[RecordingCalls], quick_path: Path) -> None:
    assert PowerLoss(quick_path, calls_type, stop_at_first=True).found

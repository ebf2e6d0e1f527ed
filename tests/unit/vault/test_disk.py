"""What every `Disk` must do, and what `LocalDisk` does about a kernel that does not."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from steadyolo.testing.faulty_disk import FailingCalls, WatchedCalls
from steadyolo.testing.power_loss import RecordingCalls
from steadyolo.vault.disk import Disk, LocalDisk, ensure_folder
from steadyolo.vault.files import replace_file

DISKS: dict[str, Callable[[Path], Disk]] = {
    "local": lambda _: LocalDisk(),
    "watched": lambda _: LocalDisk(WatchedCalls()),
    "recorded": lambda folder: LocalDisk(RecordingCalls(folder, on_change=lambda: None)),
}


@pytest.fixture(params=DISKS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    return DISKS[request.param](tmp_path)


def test_write_is_whole(disk: Disk, tmp_path: Path) -> None:
    disk.write(tmp_path / "it", [b"one", memoryview(b"two"), b""])
    assert (tmp_path / "it").read_bytes() == b"onetwo"
    disk.write(tmp_path / "empty", [])
    assert (tmp_path / "empty").read_bytes() == b""


def test_write_makes_new_files_only(disk: Disk, tmp_path: Path) -> None:
    disk.write(tmp_path / "it", [b"old"])
    with pytest.raises(FileExistsError):
        disk.write(tmp_path / "it", [b"new"])
    assert (tmp_path / "it").read_bytes() == b"old"


def test_rename_replaces_a_file(disk: Disk, tmp_path: Path) -> None:
    disk.write(tmp_path / "a", [b"a"])
    disk.write(tmp_path / "b", [b"b"])
    disk.rename(tmp_path / "a", tmp_path / "b")
    disk.sync_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert (tmp_path / "b").read_bytes() == b"a"


def test_folders_come_and_go(disk: Disk, tmp_path: Path) -> None:
    ensure_folder(tmp_path / "a" / "b", disk=disk)
    ensure_folder(tmp_path / "a" / "b", disk=disk)
    disk.write(tmp_path / "a" / "b" / "it", [b"it"])
    disk.remove(tmp_path / "a")
    disk.remove(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_remove_does_not_follow_links(disk: Disk, tmp_path: Path) -> None:
    ensure_folder(tmp_path / "kept", disk=disk)
    disk.write(tmp_path / "kept" / "it", [b"it"])
    (tmp_path / "folder").mkdir()
    if not isinstance(getattr(disk, "_system", None), RecordingCalls):  # which knows no links
        (tmp_path / "folder" / "link").symlink_to(tmp_path / "kept")
        disk.remove(tmp_path / "folder")
    assert (tmp_path / "kept" / "it").exists()


def test_failures_name_the_path(disk: Disk, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        disk.sync_folder(tmp_path / "nowhere")


class TricklingCalls(WatchedCalls):
    """Takes three bytes at a time, as a kernel may."""

    def transfer(self, call: object, fd: int, data: memoryview) -> int:
        return os.write(fd, data[:3])


def test_short_writes_are_continued(tmp_path: Path) -> None:
    calls = TricklingCalls()
    calls.arm()
    LocalDisk(calls).write(tmp_path / "it", [b"0123456789"])
    assert (tmp_path / "it").read_bytes() == b"0123456789"
    assert sum(call.operation == "write" for call in calls.calls) == 4


def test_a_lie_about_the_size_is_found(tmp_path: Path) -> None:
    calls = FailingCalls({"write"}, 0, "lying")
    calls.arm()
    with pytest.raises(OSError, match="10 bytes were written but the file has 5") as caught:
        LocalDisk(calls).write(tmp_path / "it", [b"0123456789"])
    assert calls.num_faults == 1
    assert caught.value.filename == str(tmp_path / "it")


def test_a_failed_fsync_is_not_tried_again(tmp_path: Path) -> None:
    calls = FailingCalls({"fsync"}, 0, "EIO")
    calls.arm()
    with pytest.raises(OSError) as caught:
        LocalDisk(calls).write(tmp_path / "it", [b"it"])
    assert caught.value.errno == errno.EIO
    assert [str(call) for call in calls.calls] == ["open it 1", "write it 1", "fsync it 1"]


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for nth in range(3):
        for operation in ("open", "write", "fsync"):
            calls = FailingCalls({operation}, nth, "EIO")
            calls.arm()
            for n in range(4):
                try:
                    replace_file(tmp_path / f"{n}", b"it", disk=LocalDisk(calls))
                except OSError:
                    continue
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("operation", ["open", "write", "fsync", "rename"])
def test_replacing_keeps_old_or_new(operation: str, tmp_path: Path) -> None:
    path = tmp_path / "it"
    for nth in range(3):
        replace_file(path, b"old")
        calls = FailingCalls({operation}, nth, "EIO")  # type: ignore[arg-type]
        calls.arm()
        try:
            replace_file(path, b"new", disk=LocalDisk(calls))
        except OSError:
            assert path.read_bytes() in {b"old", b"new"}
        else:
            assert path.read_bytes() == b"new"
        calls.disarm()
        replace_file(path, b"newest", disk=LocalDisk(calls))
        assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("it", b"newest")]


def test_replacing_syncs_file_then_renames_then_syncs_folder(tmp_path: Path) -> None:
    calls = WatchedCalls()
    calls.arm()
    replace_file(tmp_path / "it", memoryview(b"new"), disk=LocalDisk(calls))
    order = [(call.operation, call.file) for call in calls.calls]
    assert order == [
        ("open", ".it.partial"),
        ("write", ".it.partial"),
        ("fsync", ".it.partial"),
        ("rename", "it"),
        ("open", tmp_path.name),
        ("fsync", tmp_path.name),
    ]

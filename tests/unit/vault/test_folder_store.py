"""`FolderStore` under what happens to disks and processes, beyond what every store does."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from steadyolo.errors import Transient, UserError
from steadyolo.testing.faulty_disk import FailingCalls, KillingCalls, WatchedCalls
from steadyolo.vault.disk import Disk, LocalDisk
from steadyolo.vault.folder_store import FolderStore
from steadyolo.vault.objects import Taken

OLD, NEW = b"old" * 1000, b"new" * 2000
CHILDREN = multiprocessing.get_context("forkserver")  # a fork of this process would bring its threads' locks along
POINTS = [
    f"{when} {operation} {name} {nth}"
    for when, operation, name, nth in (
        ("before", "open", "PARTIAL", 1),
        ("before", "write", "PARTIAL", 1),
        ("midway", "write", "PARTIAL", 1),
        ("before", "fsync", "PARTIAL", 1),
        ("before", "rename", "object", 1),
        ("before", "open", "folder", 1),
        ("before", "fsync", "folder", 1),
    )
]


def inside(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


# --- killed ---


class KillingPuts(KillingCalls):
    """Kills at a point of a put, whose temporary file has another name each time."""

    def _pass(self, operation, path):  # type: ignore[no-untyped-def]
        return super()._pass(operation, path.with_name("PARTIAL") if path.name.endswith(".partial") else path)


def put_and_die(root: Path, point: str) -> None:
    calls = KillingPuts(point)
    store = FolderStore(root, disk=LocalDisk(calls))
    calls.arm()
    store.put("folder/object", NEW)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("before", [None, OLD])
def test_a_kill_leaves_the_old_object_or_the_new_one(tmp_path: Path, point: str, before: bytes | None) -> None:
    store = FolderStore(tmp_path)
    store.put("folder/neighbour", b"")
    if before is not None:
        store.put("folder/object", before)
    child = CHILDREN.Process(target=put_and_die, args=(tmp_path, point))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL, f"no kill at {point!r}, so this proves nothing"
    is_renamed = point.split()[2] == "folder"
    expected = {"folder/neighbour": b""} | (
        {"folder/object": NEW if is_renamed else before} if is_renamed or before else {}
    )
    assert {listed.key: store.get(listed.key).data for listed in store.list("")} == expected
    store.put("folder/object", NEW)
    assert store.get("folder/object").data == NEW


def test_what_a_killed_writer_left_behind_goes_away(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.put("folder/object", OLD)
    folder = tmp_path / "folder"
    dead, alive = folder / ".steadyolo-dead.partial", folder / ".steadyolo-alive.partial"
    dead.touch()
    alive.touch()
    long_ago_s = time.time() - 2 * 3600
    os.utime(dead, (long_ago_s, long_ago_s))
    FolderStore(tmp_path).put("folder/other", NEW)
    assert inside(folder) == {"object", "other", alive.name}
    dead.touch()
    os.utime(dead, (long_ago_s, long_ago_s))
    alive.unlink()
    store.delete("folder/object")
    assert inside(folder) == {"other", dead.name}
    store.delete("folder/other")
    assert not folder.exists()


# --- several processes ---


def claim_when_told(root: Path, name: str, gate: Connection, answers: Connection) -> None:
    store = FolderStore(root)
    answers.send("ready")
    for turn in range(gate.recv()):
        tag = store.get("run/claim").tag if turn else None
        try:
            store.put_if("run/claim", f"{name} in turn {turn}".encode(), tag=tag)
            answers.send(True)
        except Taken:
            answers.send(False)
        gate.recv()  # until all have tried


def test_of_two_processes_one_gets_the_claim(tmp_path: Path) -> None:
    num_turns = 20
    parties = []
    for name in ("one", "other"):
        (theirs, gate), (answers, mine) = CHILDREN.Pipe(duplex=False), CHILDREN.Pipe(duplex=False)
        child = CHILDREN.Process(target=claim_when_told, args=(tmp_path, name, theirs, mine))
        child.start()
        parties.append((name, child, gate, answers))
    for _, _, _, answers in parties:
        assert answers.poll(60)
        assert answers.recv() == "ready"
    for _, _, gate, _ in parties:
        gate.send(num_turns)
    for turn in range(num_turns):
        won = []
        for name, _, _, answers in parties:
            assert answers.poll(60)
            won += [name] if answers.recv() else []
        assert FolderStore(tmp_path).get("run/claim").data in {f"{name} in turn {turn}".encode() for name in won}
        # after the first turn the slower one may already have read what the faster one wrote
        assert len(won) == 1 if turn == 0 else won
        for _, _, gate, _ in parties:
            gate.send(None)
    for _, child, _, _ in parties:
        child.join(30)
        assert child.exitcode == 0


def test_cleaning_up_does_not_open_the_door_to_a_second_claim(tmp_path: Path) -> None:
    """Folders and locks come and go with others' deletions and vain attempts; of all claims one wins."""
    store = FolderStore(tmp_path)
    for turn in range(30):
        start = threading.Barrier(12)

        def claims(body: bytes, tag: str | None, start: threading.Barrier = start) -> bool:
            start.wait(30)
            try:
                store.put_if("run/claim", body, tag=tag)
            except Taken:
                return False
            return True

        def removes(start: threading.Barrier = start) -> None:
            start.wait(30)
            store.delete("run/other")

        with ThreadPoolExecutor(12) as pool:
            vain = [pool.submit(claims, b"stranger", "a tag of nobody") for _ in range(4)]
            removals = [pool.submit(removes) for _ in range(2)]
            hopeful = [pool.submit(claims, b"%d %d" % (number, turn), None) for number in range(6)]
        assert not any(future.result() for future in vain)
        assert all(future.result() is None for future in removals)
        assert sum(future.result() for future in hopeful) == 1
        store.delete("run/claim")
        assert list(tmp_path.iterdir()) == []


class SlowClock(WatchedCalls):
    """A file system whose clock stands still for the time of a test, and that syncs at once."""

    def fsync(self, fd: int, /) -> None:
        os.utime(fd, ns=(0, 0))


def test_a_tag_is_never_seen_again(tmp_path: Path) -> None:
    """Inodes are used again and clocks tick slowly: without more, every other quick write has the same tag."""
    store = FolderStore(tmp_path, disk=LocalDisk(SlowClock()))
    tags, inodes = [], []
    for number in range(100):
        store.put("a", b"%03d" % number)
        tags.append(store.get("a").tag)
        inodes.append((tmp_path / "a").stat().st_ino)
    assert len(set(tags)) == len(tags)
    if len(set(inodes)) == len(inodes):
        pytest.skip("this file system uses no inode again, so this proves nothing")


# --- disks ---


class FlippingCalls(WatchedCalls):
    """Writes one bit wrong, and says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.num_faults = 0

    def write(self, fd: int, data: memoryview, /) -> int:
        self.num_faults += 1
        return os.write(fd, bytes([data[0] ^ 1]) + bytes(data[1:]))


@pytest.mark.parametrize(
    ("make_calls", "told"),
    [
        (lambda: FailingCalls({"write"}, 0, "ENOSPC"), "No space left on device"),
        (lambda: FailingCalls({"write"}, 0, "short"), "No space left on device"),
        (lambda: FailingCalls({"write"}, 0, "lying"), "were written but the file has"),
        (lambda: FailingCalls({"fsync"}, 0, "EIO"), "Input/output error"),
        (FlippingCalls, "does not hold what was written"),
    ],
    ids=["full", "full midway", "lies", "fails to sync", "flips a bit"],
)
@pytest.mark.parametrize("is_conditional", [False, True])
def test_a_disk_that_fails_changes_nothing(
    tmp_path: Path, make_calls: Callable[[], FailingCalls | FlippingCalls], told: str, is_conditional: bool
) -> None:
    good = FolderStore(tmp_path)
    tag = good.put_if("a/b", OLD, tag=None)
    calls = make_calls()
    store = FolderStore(tmp_path, disk=LocalDisk(calls))
    calls.arm()
    with pytest.raises(Transient, match=told):
        store.put_if("a/b", NEW, tag=tag) if is_conditional else store.put("a/b", NEW)
    assert calls.num_faults, "nothing failed, so this proves nothing"
    assert good.get("a/b").data == OLD
    assert good.get("a/b").tag == tag
    assert not [name for name in inside(tmp_path) if name.endswith(".partial")]


def mounting() -> list[str] | None:
    """The command that runs a shell which may mount, or None where neither kind is allowed."""
    for unshare in (["unshare", "-m"], ["unshare", "-Urm"]):
        if shutil.which("unshare") is None:
            return None
        probe = [*unshare, "sh", "-c", "mount -t tmpfs -o size=64k tmpfs /mnt"]
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            return [*unshare, "sh", "-ec"]
    return None


ON_A_SMALL_DISK = """
import sys
from pathlib import Path
from steadyolo.errors import SteadyError
from steadyolo.vault.folder_store import FolderStore

store = FolderStore(Path(sys.argv[1]))
store.put("kept", b"k" * 100_000)
for number in range(100):
    try:
        store.put(f"more/{number}", bytes([number]) * 50_000)
    except SteadyError as error:
        print(type(error).__name__, number, error.message)
        break
assert [listed.num_bytes for listed in store.list("more/")] == [50_000] * number
assert store.get("kept").data == b"k" * 100_000
store.delete("kept")
store.put("more/after", b"a" * 50_000)
assert store.get("more/after").data == b"a" * 50_000
"""
ON_A_READ_ONLY_DISK = """
import sys
from pathlib import Path
from steadyolo.errors import SteadyError
from steadyolo.vault.folder_store import FolderStore

store = FolderStore(Path(sys.argv[1]))
for use in (
    lambda: store.put("a", b""), lambda: store.put_if("b", b"", tag=None), lambda: store.delete("kept"),
):
    try:
        use()
    except SteadyError as error:
        print(type(error).__name__, error.message, error.remedy)
assert store.get("kept").data == b"kept"
assert [listed.key for listed in store.list("")] == ["kept"]
"""


def on_a_mount(folder: Path, mount: str, program: str) -> str:
    """What a program prints that runs where `folder` is mounted as `mount` says."""
    shell = mounting()
    if shell is None:
        pytest.skip("no right to mount a file system here, neither as root nor in a user namespace")
    done = subprocess.run(
        [*shell, f'{mount}; exec "$@"', "sh", sys.executable, "-c", program, str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_full_disk_is_told_and_what_was_kept_stays(tmp_path: Path) -> None:
    said = on_a_mount(tmp_path, f"mount -t tmpfs -o size=640k tmpfs '{tmp_path}'", ON_A_SMALL_DISK)
    assert said.startswith("Transient 1"), said
    assert "No space left on device" in said


def test_a_read_only_disk_is_told(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"kept")
    said = on_a_mount(
        tmp_path, f"mount --bind '{tmp_path}' '{tmp_path}'; mount -o remount,ro,bind '{tmp_path}'", ON_A_READ_ONLY_DISK
    )
    assert said.count("UserError") == 3, said
    assert said.count("Read-only file system") == 3
    assert said.count("give this user the right") == 3


class Refusing(LocalDisk):
    """A disk where everything fails for one reason."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self._code = code

    def write(self, path: Path, chunks: object) -> None:
        raise OSError(self._code, os.strerror(self._code), str(path))


@pytest.mark.parametrize(
    ("code", "kind", "remedy"),
    [
        (errno.EACCES, UserError, "right to read and write"),
        (errno.EROFS, UserError, "right to read and write"),
        (errno.ENAMETOOLONG, UserError, "shorter names"),
        (errno.ENOLCK, UserError, "has locks"),
        (errno.ESTALE, Transient, "repair it"),
        (errno.EIO, Transient, "repair it"),
    ],
)
def test_errors_say_what_to_do(tmp_path: Path, code: int, kind: type[Exception], remedy: str) -> None:
    disk: Disk = Refusing(code)
    with pytest.raises(kind, match=remedy):
        FolderStore(tmp_path, disk=disk).put("a", b"")


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.put("a", b"")
    with pytest.raises(UserError, match="in the way"):
        store.put("a/b", b"")
    store.put("b/c", b"")
    with pytest.raises(UserError, match="in the way"):
        store.put("b", b"")
    assert [listed.key for listed in store.list("")] == ["a", "b/c"]


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without the superuser's rights, where the tests run with them."""
    is_superuser = os.geteuid() == 0
    if is_superuser:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_superuser:
            os.seteuid(0)


def test_a_folder_that_may_not_be_read_is_not_empty(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.put("a/b", b"")
    (tmp_path / "a").chmod(0)
    try:
        with as_nobody(), pytest.raises(UserError, match="Permission denied"):
            store.list("")
    finally:
        (tmp_path / "a").chmod(0o700)


def test_names_of_its_own_are_no_keys(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"do not begin with \.steadyolo-"):
        FolderStore(tmp_path).put("a/.steadyolo-b", b"")

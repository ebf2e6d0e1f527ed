"""`FolderStore`: an object store in a folder, on any disk that is mounted."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TypeVar

from steadyolo.errors import Transient, UserError
from steadyolo.vault.disk import LOCAL_DISK, Disk, ensure_folder
from steadyolo.vault.objects import Absent, Data, Listed, Stored, Taken, checked_key

_Result = TypeVar("_Result")
_LOST_AND_FOUND = "lost+found"  # a file system's own, at the root of a disk, and closed to most
_OURS = ".steadyolo-"  # names that begin so are no objects
_NUM_TRIES = 10  # to create something in a folder that somebody else removes
_STALE_S = 3600.0  # a file that is still being written is younger
_REMEDIES = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "give this user the right to read and write there"),
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EISDIR, errno.EEXIST), "choose another place: a file or folder is in the way"
    ),
    **dict.fromkeys((errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP), "use a file system that has locks"),
    errno.ENAMETOOLONG: "use shorter names",
}


class FolderStore:
    """Objects as files under `root`.

    Conditional puts and deletions of a key lock a file beside the object, so they exclude each other wherever the file
    system's locks do. That file is there as long as the object or longer.
    """

    def __init__(self, root: Path, *, disk: Disk = LOCAL_DISK) -> None:
        self.url = root.absolute().as_uri()
        self._root = root.absolute()
        self._disk = disk
        self._swept: set[Path] = set()

    def put(self, key: str, data: Data) -> None:
        path = self._path(key)
        with self._clear_errors(key):
            self._write(path, data)

    def put_if(self, key: str, data: Data, *, tag: str | None) -> str:
        path = self._path(key)
        with self._clear_errors(key), self._locked(path):
            found = _read(path)
            if found is not None and found.data == data:
                return found.tag
            if (found.tag if found else None) == tag:
                return self._write(path, data)
            if found is None:
                _lock_of(path).unlink(missing_ok=True)
        raise Taken(f"{path} was written by somebody else", remedy="read it again")

    def get(self, key: str) -> Stored:
        path = self._path(key)
        with self._clear_errors(key):
            found = _read(path)
        if found is None:
            raise Absent(f"{path} is not there", remedy="check the name")
        return found

    def stream(self, key: str) -> Iterator[Data]:
        yield self.get(key).data

    def list(self, folder: str) -> list[Listed]:
        root = self._path(folder.rstrip("/")) if folder else self._root
        with self._clear_errors(folder):
            return sorted(self._found(root), key=lambda listed: listed.key)

    def holds(self, listed: Listed, data: Data) -> bool:
        if listed.num_bytes != len(data):
            return False
        with suppress(Absent):
            return self.get(listed.key).data == data
        return False

    def delete(self, key: str) -> None:
        path = self._path(key)
        with self._clear_errors(key):
            lock = _lock_of(path)
            with self._locked(path) if lock.exists() else nullcontext():
                with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                    path.unlink()
                with suppress(FileNotFoundError, NotADirectoryError):
                    lock.unlink()
            self._remove_empty(path.parent)

    def _found(self, folder: Path) -> Iterator[Listed]:
        """The objects under a folder, which may vanish while we look."""
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(_OURS) or entry.name == _LOST_AND_FOUND:
                    continue
                path = folder / entry.name
                if entry.is_dir(follow_symlinks=False):
                    yield from self._found(path)
                elif entry.is_file():
                    with suppress(FileNotFoundError):
                        stat = path.stat()
                        key = path.relative_to(self._root).as_posix()
                        yield Listed(key=key, num_bytes=stat.st_size, tag=_tag(stat))

    def _write(self, path: Path, data: Data) -> str:
        """Make `path` hold `data`, or leave it as it is. Returns its tag."""
        temporary = path.with_name(f"{_OURS}{uuid.uuid4().hex}.partial")
        try:
            self._in_folder(path, lambda: self._disk.write(temporary, [data]))
            if temporary.read_bytes() != data:
                raise Transient(f"{temporary} does not hold what was written to it", remedy="look at that disk")
            tag = _with_a_tag_of_its_own(temporary)
            self._disk.rename(temporary, path)
        except BaseException:
            with suppress(OSError):
                self._disk.remove(temporary)
            raise
        self._disk.sync_folder(path.parent)
        if path.parent not in self._swept:
            self._swept.add(path.parent)
            _sweep(path.parent)
        return tag

    def _remove_empty(self, folder: Path) -> None:
        """Remove `folder` and those above it that hold no object any more: other stores have no folders."""
        while folder != self._root and folder.is_relative_to(self._root):
            try:
                with os.scandir(folder) as entries:
                    is_done = all(entry.name.startswith(_OURS) for entry in entries)
                if is_done:
                    _sweep(folder)
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent

    def _in_folder(self, path: Path, create: Callable[[], _Result]) -> _Result:
        """Create something beside `path`, in a folder that others may remove for as long as it is empty."""
        for tries_left in reversed(range(_NUM_TRIES)):
            try:
                if not path.parent.is_dir():
                    ensure_folder(path.parent, disk=self._disk)
                return create()
            except (FileNotFoundError, FileExistsError):
                if not tries_left:
                    raise
        raise AssertionError("unreachable")

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        """Hold the lock of `path`, which whoever deletes the object removes."""
        while True:
            fd = self._in_folder(path, lambda: os.open(_lock_of(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if _is_still(fd, _lock_of(path)):
                    yield
                    return
            finally:
                os.close(fd)

    def _path(self, key: str) -> Path:
        names = checked_key(key).split("/")
        if any(name.startswith(_OURS) for name in names):
            raise UserError(f"{key!r} is not an object's key", remedy=f"use names that do not begin with {_OURS}")
        return self._root.joinpath(*names)

    @contextmanager
    def _clear_errors(self, key: str) -> Iterator[None]:
        """Sort what the file system says by what the caller can do about it."""
        try:
            yield
        except OSError as error:
            message = f"{self._root}: {key}: {error.strerror or error}"
            if (remedy := _REMEDIES.get(error.errno or 0)) is not None:
                raise UserError(message, remedy=remedy) from error
            raise Transient(message, remedy="make room on that disk or repair it; it is tried again") from error


def _read(path: Path) -> Stored | None:
    """A file and the tag of just this file, though another one may take its place meanwhile. None if there is none."""
    try:
        with path.open("rb") as file:
            return Stored(tag=_tag(os.fstat(file.fileno())), data=file.read())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


def _tag(stat: os.stat_result) -> str:
    return f"{stat.st_ino}-{stat.st_mtime_ns}-{stat.st_size}"


def _with_a_tag_of_its_own(path: Path) -> str:
    """Change the file's time by less than a millisecond, and return its tag.

    File systems count time in ticks and use inodes again: without this, the next file but one may have the same tag.
    """
    stat = path.stat()
    millisecond = 1_000_000
    mtime_ns = stat.st_mtime_ns // millisecond * millisecond + secrets.randbelow(millisecond)
    with suppress(OSError):  # file systems that are not quite one
        os.utime(path, ns=(stat.st_atime_ns, mtime_ns))
    return _tag(path.stat())


def _lock_of(path: Path) -> Path:
    return path.with_name(f"{_OURS}{path.name}.lock")


def _is_still(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _sweep(folder: Path) -> None:
    """Remove what killed writers left behind in a folder that was changed a moment ago."""
    now_s = folder.stat().st_mtime  # by the clock that the files' times are from
    for left_behind in folder.glob(f"{_OURS}*.partial"):
        with suppress(FileNotFoundError):
            if now_s - left_behind.stat().st_mtime > _STALE_S:
                left_behind.unlink()

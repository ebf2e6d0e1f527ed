"""`FolderStore`: an object store in a folder, on any disk that is mounted."""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from steadyolo.errors import Transient, UserError
from steadyolo.vault.disk import LOCAL_DISK, Disk, ensure_folder
from steadyolo.vault.objects import Absent, Data, Listed, Stored, Taken

_OURS = ".steadyolo-"  # names that begin so are no objects
_NEEDS_SOMEBODY = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG})


class FolderStore:
    """Objects as files under `root`.

    Conditional puts lock a file beside the object, so they exclude each other wherever the file system's locks do.
    """

    def __init__(self, root: Path, *, disk: Disk = LOCAL_DISK) -> None:
        self.url = root.absolute().as_uri()
        self._root = root.absolute()
        self._disk = disk

    def put(self, key: str, data: Data) -> None:
        path = self._path(key)
        with self._clear_errors(key):
            self._write(path, data)
            if path.read_bytes() != bytes(data):
                raise Transient(f"{path} does not hold what was written to it", remedy="look at that disk")

    def put_if(self, key: str, data: Data, *, tag: str | None) -> str:
        path = self._path(key)
        with self._clear_errors(key), self._locked(path):
            found = self._tag(path) if path.is_file() else None
            if found != tag:
                raise Taken(f"{path} was written by somebody else", remedy="read it again")
            self._write(path, data)
            return self._tag(path)

    def get(self, key: str) -> Stored:
        path = self._path(key)
        with self._clear_errors(key):
            try:
                return Stored(data=path.read_bytes(), tag=self._tag(path))
            except (FileNotFoundError, IsADirectoryError):
                raise Absent(f"{path} is not there", remedy="check the name") from None

    def list(self, folder: str) -> list[Listed]:
        with self._clear_errors(folder):
            return sorted(self._found(self._root / folder), key=lambda listed: listed.key)

    def holds(self, listed: Listed, data: Data) -> bool:
        if listed.num_bytes != len(data):
            return False
        with suppress(Absent):
            return self.get(listed.key).data == bytes(data)
        return False

    def delete(self, key: str) -> None:
        path = self._path(key)
        with self._clear_errors(key):
            path.unlink(missing_ok=True)
            for folder in path.parents:  # what a folder store keeps in folders, an object store does not have
                if folder == self._root or not folder.is_relative_to(self._root):
                    break
                for lock in folder.glob(f"{_OURS}*.lock") if not self._holds_more(folder) else ():
                    lock.unlink(missing_ok=True)
                try:
                    folder.rmdir()
                except OSError:
                    break

    def _found(self, folder: Path) -> Iterator[Listed]:
        for path in folder.rglob("*"):
            if path.name.startswith(_OURS) or not path.is_file():
                continue
            with suppress(FileNotFoundError):  # deleted while we look
                key = path.relative_to(self._root).as_posix()
                yield Listed(key=key, num_bytes=path.stat().st_size, tag=self._tag(path))

    def _holds_more(self, folder: Path) -> bool:
        return any(not path.name.startswith(_OURS) for path in folder.iterdir())

    def _write(self, path: Path, data: Data) -> None:
        if not path.parent.is_dir():
            ensure_folder(path.parent, disk=self._disk)
        temporary = path.with_name(f"{_OURS}{uuid.uuid4().hex}.partial")
        try:
            self._disk.write(temporary, [data])
            self._disk.rename(temporary, path)
        except BaseException:
            with suppress(OSError):
                self._disk.remove(temporary)
            raise
        self._disk.sync_folder(path.parent)

    @staticmethod
    def _tag(path: Path) -> str:
        stat = path.stat()
        return f"{stat.st_ino}-{stat.st_mtime_ns}-{stat.st_size}"

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        if not path.parent.is_dir():
            ensure_folder(path.parent, disk=self._disk)
        fd = os.open(path.with_name(f"{_OURS}{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if any(part in {"", ".", ".."} or part.startswith(_OURS) for part in parts):
            raise UserError(f"{key!r} is not an object's key", remedy="use names separated by single slashes")
        return self._root.joinpath(*parts)

    @contextmanager
    def _clear_errors(self, key: str) -> Iterator[None]:
        """Sort what the file system says by what the caller can do about it."""
        try:
            yield
        except OSError as error:
            message = f"{self._root}: {key}: {error.strerror or error}"
            if error.errno in _NEEDS_SOMEBODY:
                raise UserError(message, remedy="give this user the right to write there") from error
            raise Transient(message, remedy="make room on that disk or repair it; it is tried again") from error

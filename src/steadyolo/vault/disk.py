"""`Disk`: the few effects that keeping weights needs, and `LocalDisk`, which has them on a local file system."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol


class Disk(Protocol):
    """Where files are kept. Every method raises `OSError` naming the path when it cannot keep its word."""

    def write(
        self, path: Path, chunks: Iterable[memoryview | bytes]
    ) -> None: ...  # a new file: whole, its bytes durable
    def sync_folder(self, path: Path) -> None: ...  # the names in the folder are durable, as they are now
    def rename(self, src: Path, dst: Path) -> None: ...  # readers see one of the two; durable after `sync_folder`
    def make_folder(self, path: Path) -> None: ...  # it exists, as it may have before; durable after `sync_folder`
    def remove(self, path: Path) -> None: ...  # file or tree is gone from sight; absent is not an error


class SystemCalls(Protocol):
    """The part of the module `os` that changes a disk, so that a test can stand between the two."""

    def open(self, path: Path, flags: int, mode: int = 0o777, /) -> int: ...
    def write(self, fd: int, data: memoryview, /) -> int: ...
    def fsync(self, fd: int, /) -> None: ...
    def rename(self, src: Path, dst: Path, /) -> None: ...
    def mkdir(self, path: Path, /) -> None: ...
    def unlink(self, path: Path, /) -> None: ...
    def rmdir(self, path: Path, /) -> None: ...


class LocalDisk:
    """A file system that the kernel mounts, such as ext4 or xfs."""

    def __init__(self, system: SystemCalls = os) -> None:
        self._system = system

    def write(self, path: Path, chunks: Iterable[memoryview | bytes]) -> None:
        def fill(fd: int) -> None:
            num_bytes = sum(self._write_whole(fd, memoryview(chunk)) for chunk in chunks)
            found_bytes = os.fstat(fd).st_size
            if found_bytes != num_bytes:
                raise OSError(errno.EIO, f"{num_bytes} bytes were written but the file has {found_bytes}")
            self._system.fsync(fd)  # never tried twice: a failed one marks the pages clean, and the next would lie

        self._with_open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, fill)

    def sync_folder(self, path: Path) -> None:
        self._with_open(path, os.O_RDONLY | os.O_DIRECTORY, self._system.fsync)

    def rename(self, src: Path, dst: Path) -> None:
        self._system.rename(src, dst)

    def make_folder(self, path: Path) -> None:
        if not path.is_dir():
            try:
                self._system.mkdir(path)
            except FileExistsError:
                if not path.is_dir():  # somebody else has just made it
                    raise

    def remove(self, path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            for inside in sorted(path.iterdir()):
                self.remove(inside)
            self._system.rmdir(path)
        elif os.path.lexists(path):
            self._system.unlink(path)

    def _with_open(self, path: Path, flags: int, work: Callable[[int], None]) -> None:
        """Do `work` on the open file. What goes wrong names `path`, which calls on a descriptor do not know."""
        fd = self._system.open(path, flags | os.O_CLOEXEC, 0o666)
        try:
            work(fd)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        finally:
            os.close(fd)

    def _write_whole(self, fd: int, data: memoryview) -> int:
        """Write all of `data`, in as many calls as the kernel wants. Returns its size in bytes."""
        done = 0
        while done < data.nbytes:
            written = self._system.write(fd, data[done:])
            if written <= 0:
                raise OSError(errno.EIO, f"the disk took {done} of {data.nbytes} bytes and no more")
            done += written
        return done


LOCAL_DISK = LocalDisk()


def ensure_folder(path: Path, *, disk: Disk = LOCAL_DISK) -> None:
    """Make `path` and its missing parents; when this returns they outlive a loss of power."""
    if not path.parent.is_dir():
        ensure_folder(path.parent, disk=disk)
    disk.make_folder(path)
    disk.sync_folder(path.parent)

"""The cache on this machine, and that of data sets in it: where it is, who uses what in it, and how room is made."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from steadyolo.errors import UserError
from steadyolo.plan.eviction import Cached, plan_eviction, usual_budget_bytes
from steadyolo.vault.disk import ensure_folder

_LOCKS = ".locks"
_REMOVING = ".removing-"
_POLL_S = 0.1


def cache_root(environment: Mapping[str, str]) -> Path:
    """Where this user keeps what can be had again.

    In STEADYOLO_CACHE, else in XDG_CACHE_HOME/steadyolo, else in ~/.cache/steadyolo.
    """
    if ours := environment.get("STEADYOLO_CACHE"):
        return Path(ours).expanduser().absolute()
    base = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "steadyolo"


def usual_cache(environment: Mapping[str, str]) -> Path:
    """The folder for data sets."""
    return cache_root(environment) / "datasets"


class FileLock:
    """A lock that the kernel keeps on a file until it is released or its process ends. Forked processes do not hold it.

    The file stays: removing it would race with others.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._fd: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UserError(f"{path} cannot be locked: {error.strerror}", remedy="choose another data.cache=") from None
        os.register_at_fork(after_in_child=self.release)

    def take(self, *, shared: bool = False) -> bool:
        """Whether it is held now, in the way asked for. Asking again changes the way, and may lose what was held."""
        if self._fd is None:
            return False
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise UserError(
                f"the data cache cannot be locked: {error.strerror}",
                remedy="choose a data.cache= on a disk whose file system has locks",
            ) from None
        return True

    def wait(self, *, on_wait: Callable[[], None], sleep: Callable[[float], None] = time.sleep) -> None:
        """Return when it is held, by nobody else. `on_wait` is called again and again until then."""
        while not self.take():
            on_wait()
            sleep(_POLL_S)

    def release(self) -> None:
        """Give it back. Not holding it is not an error."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class CacheEntry:
    """The folder of one data set in the cache.

    `work` is held by the one process that looks at the store and changes the folder; `use` is shared by all that learn
    from its files. Who changes or removes files holds both; `use` is only ever asked for while `work` is held.
    """

    def __init__(self, cache: Path, name: str) -> None:
        ensure_folder(cache / _LOCKS)
        self.name = name
        self.folder = cache / name
        self.files = self.folder / "files"
        self.arriving = self.folder / "arriving"  # names for files until they are whole
        self.work = FileLock(cache / _LOCKS / f"{name}.work")
        self.use = FileLock(cache / _LOCKS / f"{name}.use")

    def stamp(self, what: str, at_s: float) -> None:
        """Note that `used` or `confirmed` happened at a time, in seconds since 1970."""
        path = self.folder / what
        with suppress(OSError):  # a full or read-only disk must not keep a run from its data
            path.touch()
            os.utime(path, (at_s, at_s))

    def stamped_at_s(self, what: str) -> float:
        """When that last happened; 0 if never."""
        try:
            return (self.folder / what).stat().st_mtime
        except OSError:
            return 0.0

    def release(self) -> None:
        """Let go of both locks."""
        self.use.release()
        self.work.release()


def make_room(
    entry: CacheEntry,
    *,
    wanted_bytes: int,
    to_write_bytes: int,
    budget_bytes: int | None,
    free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
) -> tuple[str, ...]:
    """Remove what was not used for longest until the data set of `entry` fits; returns the names of what is gone.

    One process at a time. A data set that a live process works on or uses stays.
    Raises: UserError when it cannot fit; then everything is still there.
    """
    cache = entry.folder.parent
    with ExitStack() as stack:
        alone = FileLock(cache / _LOCKS / "room")
        stack.callback(alone.release)
        alone.wait(on_wait=lambda: None)
        for left in cache.glob(f"{_REMOVING}*"):  # of a process that was killed here
            shutil.rmtree(left, ignore_errors=True)
        others = []
        for name in sorted(lock.stem for lock in (cache / _LOCKS).glob("*.work")):  # what has no lock is not ours
            if name == entry.name or not (cache / name).is_dir():
                continue
            other = CacheEntry(cache, name)
            stack.callback(other.release)
            others.append(
                Cached(
                    name=other.name,
                    num_bytes=taken_bytes(other.folder),
                    used_at_s=other.stamped_at_s("used"),
                    in_use=not (other.work.take() and other.use.take()),
                )
            )
        free = free_bytes(cache)
        held = sum(other.num_bytes for other in others) + taken_bytes(entry.folder)
        gone = plan_eviction(
            others,
            wanted_bytes=wanted_bytes,
            to_write_bytes=to_write_bytes,
            budget_bytes=usual_budget_bytes(free_bytes=free, cached_bytes=held)
            if budget_bytes is None
            else budget_bytes,
            free_bytes=free,
        )
        for name in gone:
            leaving = cache / f"{_REMOVING}{uuid.uuid4().hex}"
            (cache / name).rename(leaving)  # in one instant: a killed removal leaves no half of a data set
            shutil.rmtree(leaving)
    return gone


def taken_bytes(folder: Path) -> int:
    """The room that a folder takes on its disk."""
    num_bytes = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # another process may be at work in it
                num_bytes += os.lstat(os.path.join(where, name)).st_blocks * 512
    return num_bytes

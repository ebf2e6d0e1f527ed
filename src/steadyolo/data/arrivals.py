"""`Arrivals`: takes fetched objects into a mirror, so that a kill at any instant leaves something to go on from."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from steadyolo.data.cache import CacheEntry
from steadyolo.data.index import Copy, IndexFile
from steadyolo.vault.disk import Disk, ensure_folder
from steadyolo.vault.objects import Listed


@dataclass(frozen=True, slots=True)
class Arrived:
    """A copy whose file is whole and durable, and does not have its name yet."""

    copy: Copy
    path: Path


class Arrivals:
    """Changes the files of `entry`, whose locks the caller holds. From `begin` to `end` the mirror is not complete."""

    def __init__(self, entry: CacheEntry, *, disk: Disk) -> None:
        self._entry = entry
        self._disk = disk
        self._index = IndexFile(entry.folder, disk=disk)
        self._copies: dict[str, Copy] = {}
        self._folders: set[Path] = set()  # in which names changed

    def begin(self, copies: Mapping[str, Copy], *, remove: Collection[str]) -> None:
        """Go on from `copies`, some of which may be lost or altered, and remove those that the store no longer has."""
        self._disk.remove(self._entry.arriving)  # of a process that was killed here
        for folder in (self._entry.files, self._entry.arriving):
            ensure_folder(folder, disk=self._disk)
        self._index.open(copies.values())  # with what is to be removed: a kill in between forgets none of it
        for key in remove:
            self._remove(self._entry.files / key)
        self._copies = {key: copy for key, copy in copies.items() if key not in remove}

    def write(self, listed: Listed, data: bytes) -> Arrived:
        """Write an object's body. Many threads may at once."""
        path = self._entry.arriving / uuid.uuid4().hex
        self._disk.write(path, [data])
        copy = Copy(
            key=listed.key,
            tag=listed.tag,
            num_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            mtime_ns=path.stat().st_mtime_ns,
        )
        return Arrived(copy, path)

    def keep(self, arrived: Arrived) -> None:
        """Give a file its name. One thread at a time."""
        path = self._entry.files / arrived.copy.key
        if not path.parent.is_dir():
            ensure_folder(path.parent, disk=self._disk)
        self._index.add(arrived.copy)
        self._disk.rename(arrived.path, path)
        self._copies[arrived.copy.key] = arrived.copy
        self._folders.add(path.parent)

    def end(self) -> None:
        """All is there: from now on the mirror is complete, and stays so after a loss of power."""
        for folder in sorted(folder for folder in self._folders if folder.is_dir()):
            self._disk.sync_folder(folder)
        self._disk.remove(self._entry.arriving)
        self._index.close(self._copies.values())

    def _remove(self, path: Path) -> None:
        self._disk.remove(path)
        folder = path.parent
        with suppress(OSError):  # the first that still holds something
            while folder != self._entry.files:
                folder.rmdir()
                folder = folder.parent
        self._folders.add(folder)

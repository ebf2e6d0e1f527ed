"""What tests of fetching share: small data sets in stores, and stores that count, fail and lie."""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from steadyolo.data.fetch import Dataset, fetch_dataset
from steadyolo.errors import Transient
from steadyolo.testing.memory_store import MemoryStore
from steadyolo.vault.folder_store import FolderStore
from steadyolo.vault.objects import Data, Listed, ObjectStore, Stored

URL = "s3://bucket/pcb/"
YAML = b"path: /disk/datasets/pcb\ntrain: images/train\nval: images/val\nnames: [open, short]\n"
FILES = {
    "data.yaml": YAML,
    **{f"images/{split}/{n}.jpg": f"{split} image {n}".encode() * 50 for split in ("train", "val") for n in range(3)},
    **{f"labels/{split}/{n}.txt": f"{n} .5 .5 .1 .1\n".encode() for split in ("train", "val") for n in range(3)},
    "labels/train/empty.txt": b"",
}


def filled(store: ObjectStore, files: dict[str, bytes] | None = None) -> ObjectStore:
    """The store, with a small data set in it."""
    for key, data in (FILES if files is None else files).items():
        if isinstance(store, MemoryStore):  # others put what no store of ours would
            store.objects[key] = Stored(data=data, tag=uuid.uuid4().hex)
        else:
            store.put(key, data)
    return store


def both_kinds(tmp_path: Path) -> list[ObjectStore]:
    """Stores whose tags are random, and made of inode and time."""
    return [MemoryStore(), FolderStore(tmp_path / "store")]


def held(files: Path) -> dict[str, bytes]:
    """Each file of a folder, by key."""
    return {
        path.relative_to(files).as_posix(): path.read_bytes() for path in sorted(files.rglob("*")) if path.is_file()
    }


def contents(store: ObjectStore) -> dict[str, bytes]:
    """Each object of a store, by key."""
    return {listed.key: store.get(listed.key).data for listed in store.list("")}


class Md5Store(MemoryStore):
    """Its tags are MD5s, as those of S3 are."""

    def list(self, folder: str) -> list[Listed]:
        return [
            replace(listed, tag=f'"{hashlib.md5(self.objects[listed.key].data).hexdigest()}"')
            for listed in super().list(folder)
        ]

    def stream(self, key: str) -> Iterator[Data]:
        yield self.get(key).data

    def holds(self, listed: Listed, data: bytes | memoryview) -> bool:
        return listed.tag == f'"{hashlib.md5(data).hexdigest()}"'


class WatchedStore:
    """Passes requests on and counts them; `meet` may raise or change what is answered."""

    def __init__(self, inner: ObjectStore, meet: Callable[[str, str, int], bytes | None] = lambda *_: None) -> None:
        self.url = inner.url
        self.num_lists = 0
        self.gets: list[str] = []
        self.meet = meet
        self._inner = inner
        self._lock = threading.Lock()

    def list(self, folder: str) -> list[Listed]:
        self.num_lists += 1
        self.meet("list", folder, self.num_lists)
        return self._inner.list(folder)

    def get(self, key: str) -> Stored:
        with self._lock:
            self.gets.append(key)
            nth = len(self.gets)
        other = self.meet("get", key, nth)
        stored = self._inner.get(key)
        return stored if other is None else Stored(data=other, tag=stored.tag)

    def holds(self, listed: Listed, data: bytes | memoryview) -> bool:
        return self._inner.holds(listed, data)

    def put(self, key: str, data: bytes | memoryview) -> None:
        self._inner.put(key, data)

    def put_if(self, key: str, data: bytes | memoryview, *, tag: str | None) -> str:
        return self._inner.put_if(key, data, tag=tag)

    def delete(self, key: str) -> None:
        self._inner.delete(key)


def down(*_: object) -> None:
    """A `meet` of a store that does not answer."""
    raise Transient("list (all) in memory://store: no answer", remedy="wait")


def fetch(store: ObjectStore, cache: Path, url: str = URL, **options: Any) -> Dataset:
    """Fetch without pauses."""
    return fetch_dataset(url, open_store=lambda _: store, cache=cache, pauses_s=(0.0, 0.0), **options)

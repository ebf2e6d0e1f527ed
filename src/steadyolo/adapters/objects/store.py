"""`CloudStore`: an `ObjectStore` in a bucket of S3, Google or Azure, through obstore 0.12."""

from __future__ import annotations

import hashlib
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from steadyolo.adapters.objects.errors import Verb, sorted_errors
from steadyolo.errors import Transient, UserError
from steadyolo.vault.objects import Absent, Data, Listed, Stored, Taken, checked_key

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Obstore

_Result = TypeVar("_Result")
_STREAM_BYTES = 256 * 1024  # fits into a core's cache, so that it is hashed and written before it leaves it
_MD5 = re.compile(r"[0-9a-f]{32}")


class CloudStore:
    """Objects under a prefix of a bucket.

    `connect` makes obstore's store; it is called again after the store refused something, so that new credentials are
    found. A tag that is the MD5 of a body confirms it, as S3's and Google's mostly are; otherwise it is read back.
    Retries are the caller's, who knows what may wait.
    """

    def __init__(self, url: str, connect: Callable[[], Obstore]) -> None:
        self.url = url
        self._connect = connect
        self._lock = threading.Lock()
        self._connected: Obstore | None = None

    def put(self, key: str, data: Data) -> None:
        import obstore

        checked_key(key)
        result = self._do("put", key, lambda store: obstore.put(store, key, data, use_multipart=False))
        if not (_proves(_tag(result), data) or self._reads_as(key, data)):
            raise Transient(f"{self.url}: {key} is not what was sent", remedy="wait: it is sent again")

    def put_if(self, key: str, data: Data, *, tag: str | None) -> str:
        import obstore

        checked_key(key)
        mode: Any = "create" if tag is None else _version(tag)

        def write(store: Obstore) -> str:
            return _tag(obstore.put(store, key, data, mode=mode, use_multipart=False))

        try:
            return self._do("put_if", key, write)
        except Taken:
            with suppress(Absent):
                found = self.get(key)
                if found.data == data:  # by an attempt whose answer was lost, here or in obstore
                    return found.tag
            raise

    def get(self, key: str) -> Stored:
        import obstore

        def read(store: Obstore) -> Stored:
            result = obstore.get(store, key)
            if not (tag := _tag(result.meta)):
                raise Transient(
                    f"{self.url}: what answers is no object store",
                    remedy="check the endpoint, and whether this network asks for a log-in",
                )
            return Stored(data=memoryview(result.bytes()), tag=tag)

        checked_key(key)
        return self._do("get", key, read)

    def stream(self, key: str) -> Iterator[Data]:
        import obstore

        checked_key(key)
        pieces = self._do("get", key, lambda store: iter(obstore.get(store, key).stream(min_chunk_size=_STREAM_BYTES)))
        while (piece := self._do("get", key, lambda _: next(pieces, None))) is not None:
            yield memoryview(piece)

    def list(self, folder: str) -> list[Listed]:
        import obstore

        def read(store: Obstore) -> list[Listed]:
            return [
                Listed(key=meta["path"], num_bytes=meta["size"], tag=_tag(meta))
                for batch in obstore.list(store, folder.rstrip("/") or None)
                for meta in batch
            ]

        found = _objects(self._do("list", folder, read))
        if not found:  # obstore finds nothing in any text; what answers an unknown key with one is no store
            with suppress(Absent):
                self.get(f"{uuid.uuid4()}")
        return found

    def holds(self, listed: Listed, data: Data) -> bool:
        if listed.num_bytes != len(data):
            return False
        return _proves(listed.tag, data) or self._reads_as(listed.key, data)

    def delete(self, key: str) -> None:
        import obstore

        checked_key(key)
        with suppress(Absent):
            self._do("delete", key, lambda store: obstore.delete(store, key))

    def _reads_as(self, key: str, data: Data) -> bool:
        with suppress(Absent):
            return self.get(key).data == data
        return False

    def _do(self, verb: Verb, key: str, work: Callable[[Obstore], _Result]) -> _Result:
        try:
            with sorted_errors(verb, f"{key or '(all)'} in {self.url}"):
                return work(self._store())
        except UserError:
            self._connected = None
            raise

    def _store(self) -> Obstore:
        with self._lock:
            if self._connected is None:
                self._connected = self._connect()
            return self._connected


def _objects(found: list[Listed]) -> list[Listed]:
    """What was listed, sorted, without the empty objects that consoles make where they show a folder."""
    folders = {""}
    for listed in found:
        folder = listed.key.rpartition("/")[0]
        while folder not in folders:
            folders.add(folder)
            folder = folder.rpartition("/")[0]
    return sorted((it for it in found if it.num_bytes or it.key not in folders), key=lambda listed: listed.key)


def _tag(said: Mapping[str, Any]) -> str:
    """One text for what tells two states of an object apart: S3 goes by the ETag, Google by the version.

    Azure lists ETags without the quotes that it answers with, and that a condition needs.
    """
    e_tag = said["e_tag"] or ""
    quoted = e_tag if not e_tag or e_tag.endswith('"') else f'"{e_tag}"'
    return f"{quoted} {said.get('version') or ''}".strip()


def _version(tag: str) -> dict[str, str]:
    e_tag, _, version = tag.partition(" ")
    return {"e_tag": e_tag, **({"version": version} if version else {})}


def _proves(tag: str, data: Data) -> bool:
    """Whether a tag shows that a body is `data`. Many that do not are of the same form."""
    bare = tag.partition(" ")[0].strip('"')
    return _MD5.fullmatch(bare) is not None and bare == hashlib.md5(data, usedforsecurity=False).hexdigest()

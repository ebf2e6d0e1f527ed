"""`CloudStore`: an `ObjectStore` in a bucket of S3, Google or Azure, through obstore 0.12."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from steadyolo.adapters.objects.errors import sorted_errors
from steadyolo.errors import Transient, UserError
from steadyolo.vault.objects import Absent, Data, Listed, Stored

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Obstore

_Result = TypeVar("_Result")
_MD5 = re.compile(r"[0-9a-f]{32}")


class CloudStore:
    """Objects under a prefix of a bucket.

    `connect` makes obstore's store; it is called again after the credentials were refused, so that new ones are found.
    `tags_are_md5` says that the tag of an object is the MD5 of its body: then a tag confirms a put, and otherwise the
    object is read back. Retries are the caller's, who knows what may wait.
    """

    def __init__(self, url: str, connect: Callable[[], Obstore], *, tags_are_md5: bool) -> None:
        self.url = url
        self._connect = connect
        self._tags_are_md5 = tags_are_md5
        self._lock = threading.Lock()
        self._connected: Obstore | None = None

    def put(self, key: str, data: Data) -> None:
        import obstore

        result = self._do("put", key, lambda store: obstore.put(store, key, data, use_multipart=False))
        tag = _bare(_tag(result))
        confirmed = tag == _md5(data) if self._is_md5(tag) else self.get(key).data == data
        if not confirmed:
            raise Transient(f"{self.url}: {key} is not what was sent", remedy="wait: it is sent again")

    def put_if(self, key: str, data: Data, *, tag: str | None) -> str:
        import obstore

        mode: Any = "create" if tag is None else _version(tag)
        return _tag(self._do("put", key, lambda store: obstore.put(store, key, data, mode=mode, use_multipart=False)))

    def get(self, key: str) -> Stored:
        import obstore

        def read(store: Obstore) -> Stored:
            result = obstore.get(store, key)
            return Stored(data=memoryview(result.bytes()).tobytes(), tag=_tag(result.meta))

        return self._do("get", key, read)

    def list(self, folder: str) -> list[Listed]:
        import obstore

        def read(store: Obstore) -> list[Listed]:
            return [
                Listed(key=meta["path"], num_bytes=meta["size"], tag=_tag(meta))
                for batch in obstore.list(store, folder.rstrip("/") or None)
                for meta in batch
            ]

        found = [listed for listed in self._do("list", folder, read) if listed.key.startswith(folder)]
        return sorted(found, key=lambda listed: listed.key)

    def holds(self, listed: Listed, data: Data) -> bool:
        if listed.num_bytes != len(data):
            return False
        if self._is_md5(_bare(listed.tag)):
            return _bare(listed.tag) == _md5(data)
        with suppress(Absent):
            return self.get(listed.key).data == data
        return False

    def delete(self, key: str) -> None:
        import obstore

        with suppress(Absent):
            self._do("delete", key, lambda store: obstore.delete(store, key))

    def _is_md5(self, tag: str) -> bool:
        return self._tags_are_md5 and _MD5.fullmatch(tag) is not None

    def _do(self, verb: str, key: str, work: Callable[[Obstore], _Result]) -> _Result:
        what = f"{verb} {key or '(all)'} in {self.url}"
        try:
            with sorted_errors(what):
                return work(self._store())
        except UserError:
            self._connected = None
            raise

    def _store(self) -> Obstore:
        with self._lock:
            if self._connected is None:
                self._connected = self._connect()
            return self._connected


def _tag(said: Mapping[str, Any]) -> str:
    """One text for what tells two states of an object apart: S3 goes by the ETag, Google by the version."""
    return f"{said['e_tag'] or ''} {said.get('version') or ''}".strip()


def _version(tag: str) -> dict[str, str]:
    e_tag, _, version = tag.partition(" ")
    return {"e_tag": e_tag, **({"version": version} if version else {})}


def _bare(tag: str) -> str:
    return tag.partition(" ")[0].strip('"')


def _md5(data: Data) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()

"""`Index`: what a mirror of a data set holds, and how that survives a kill at any instant."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from steadyolo.vault.disk import Disk
from steadyolo.vault.files import replace_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """One object as it was fetched. While the size and `mtime_ns` of its file stay, that is not read again."""

    key: str
    tag: str
    num_bytes: int
    sha256: str
    mtime_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """The copies in a mirror, by key. Only a `complete` one may be learned from."""

    VERSION: ClassVar[int] = 1

    copies: Mapping[str, Copy]
    complete: bool


class IndexFile:
    """Keeps the index in a mirror's folder, in one of two forms.

    A complete one is `index.json`, which carries a digest of itself. While files are being fetched it is
    `arrivals.jsonl` instead: a line for each copy, written before its file gets its name. What a kill tears is a line
    whose file is not there yet; it is fetched again.
    """

    def __init__(self, folder: Path, *, disk: Disk) -> None:
        self._whole = folder / "index.json"
        self._arrivals = folder / "arrivals.jsonl"
        self._disk = disk

    def read(self) -> Index:
        """What is written; whatever is damaged counts as not there."""
        try:
            return Index(copies=_by_key(_parsed_whole(self._whole.read_bytes())), complete=True)
        except (OSError, ValueError, KeyError, TypeError):
            pass
        try:
            lines = self._arrivals.read_bytes().splitlines()
        except OSError:
            lines = []
        return Index(copies=_by_key(copy for line in lines if (copy := _parsed_line(line)) is not None), complete=False)

    def open(self, copies: Iterable[Copy]) -> None:
        """From now on the index is not complete: it has `copies`, and those that are added."""
        replace_file(self._arrivals, b"".join(_line(copy) for copy in copies), disk=self._disk)
        self._disk.remove(self._whole)
        self._disk.sync_folder(self._whole.parent)

    def add(self, copy: Copy) -> None:
        """Note a copy, before its file gets its name. One caller at a time."""
        fd = os.open(self._arrivals, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            line = _line(copy)
            if os.write(fd, line) != len(line):
                raise OSError(f"{self._arrivals} took only a part of a line")
        finally:
            os.close(fd)

    def close(self, copies: Iterable[Copy]) -> None:
        """From now on the index is complete, with `copies`."""
        body = {"version": Index.VERSION, "files": [asdict(copy) for copy in sorted(copies, key=lambda copy: copy.key)]}
        replace_file(self._whole, _text({**body, "digest": _digest(body)}) + b"\n", disk=self._disk)
        self._disk.remove(self._arrivals)


def restamped(copy: Copy, mtime_ns: int) -> Copy:
    """The same copy after its file was read and found unchanged."""
    return replace(copy, mtime_ns=mtime_ns)


def _text(raw: Mapping[str, Any]) -> bytes:
    """Compact, which json writes ten times as fast as text for people: this is read at every start."""
    return json.dumps(raw, separators=(",", ":")).encode()


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(body)).hexdigest()


def _line(copy: Copy) -> bytes:
    body = asdict(copy)
    return _text({**body, "digest": _digest(body)[:16]}) + b"\n"


def _parsed_line(line: bytes) -> Copy | None:
    try:
        raw = json.loads(line)
        digest = raw.pop("digest")
        return _copy(raw) if digest == _digest(raw)[:16] else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _parsed_whole(text: bytes) -> list[Copy]:
    raw = json.loads(text)
    digest = raw.pop("digest")
    if raw["version"] != Index.VERSION or digest != _digest(raw):
        raise ValueError("not what was written")
    return [_copy(entry) for entry in raw["files"]]


def _copy(raw: dict[str, Any]) -> Copy:
    if set(raw) != {field.name for field in fields(Copy)}:
        raise ValueError("not a copy's keys")
    return Copy(**raw)


def _by_key(copies: Iterable[Copy]) -> dict[str, Copy]:
    return {copy.key: copy for copy in copies}

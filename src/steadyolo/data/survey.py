"""Compares the files of a mirror with its index."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from steadyolo.data.index import Copy, restamped

_DERIVED = (".cache", ".npy")  # what Ultralytics writes beside labels and images, besides hidden files


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What was found: copies that are `sound`, `altered` since they were fetched, or `lost`; and `foreign` files."""

    sound: Mapping[str, Copy]
    altered: frozenset[str]
    lost: frozenset[str]
    foreign: tuple[str, ...]


def survey(files: Path, copies: Mapping[str, Copy], *, reread: bool = False) -> Survey:
    """Look at every file. Only those whose size or time of change is another one are read, or all with `reread`."""
    found = dict(_found(files))
    sound: dict[str, Copy] = {}
    altered: set[str] = set()
    for key, copy in copies.items():
        stat = found.pop(key, None)
        if stat is None:
            continue
        num_bytes, mtime_ns = stat
        if not reread and (num_bytes, mtime_ns) == (copy.num_bytes, copy.mtime_ns):
            sound[key] = copy
        elif num_bytes == copy.num_bytes and _sha256(files / key) == copy.sha256:
            sound[key] = restamped(copy, mtime_ns)
        else:
            altered.add(key)
    return Survey(
        sound=sound,
        altered=frozenset(altered),
        lost=frozenset(copies.keys() - sound.keys() - altered),
        foreign=tuple(sorted(key for key in found if not _is_derived(key))),
    )


def _is_derived(key: str) -> bool:
    name = PurePosixPath(key).name
    return name.startswith(".") or name.endswith(_DERIVED)


def _found(files: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Each file's key, size and time of change. What vanishes meanwhile is left out."""
    base = len(str(files)) + 1
    for where, _, names in os.walk(files):
        for name in names:
            path = os.path.join(where, name)
            with suppress(FileNotFoundError):
                stat = os.lstat(path)
                yield path[base:], (stat.st_size, stat.st_mtime_ns)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

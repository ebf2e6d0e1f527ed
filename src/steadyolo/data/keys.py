"""Which objects of a store can be files of a data set."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from posixpath import splitext

from steadyolo.errors import UserError
from steadyolo.vault.objects import Listed

_LONGEST_NAME_BYTES = 255


def files_of(listing: Iterable[Listed], url: str) -> dict[str, Listed]:
    """The objects that become files, by key.

    Left out are empty ones that only stand for a folder, and what Ultralytics once wrote beside labels (`.cache`) and
    images (`.npy`): it means another folder, and is made anew where it is wanted.
    Raises: UserError for a key that could lead out of a folder or cannot be a file's name everywhere, and for two that
    would share a file: names that differ only in case, or a file where a folder has to be.
    """
    listing = list(listing)
    folders = {key[:at] for key in (listed.key for listed in listing) for at in _slashes(key)}
    stems = {stem for listed in listing for stem, suffix in [splitext(listed.key)] if suffix != ".npy"}
    found = {
        listed.key: listed
        for listed in listing
        if (listed.num_bytes or not (listed.key.endswith("/") or listed.key in folders))
        and not listed.key.endswith(".cache")
        and not (listed.key.endswith(".npy") and splitext(listed.key)[0] in stems)
    }
    seen: dict[str, str] = {}
    for key in found:
        if why := _unusable(key, folders):
            raise UserError(
                f"{key!r} in {url} cannot be a file of a data set: {why}",
                remedy="rename that object, or remove it from the data set",
            )
        folded = unicodedata.normalize("NFC", key).casefold()
        if folded in seen:
            raise UserError(
                f"{seen[folded]!r} and {key!r} in {url} are one name on some disks",
                remedy="rename one of them so that they differ by more than case",
            )
        seen[folded] = key
    return found


def _unusable(key: str, folders: set[str]) -> str | None:
    parts = key.split("/")
    if not key.isprintable() or "\\" in key:
        return "it holds a backslash or a control character"
    if any(part in {"", ".", ".."} for part in parts):
        return "it is not a path inside the data set's folder"
    if any(len(part.encode()) > _LONGEST_NAME_BYTES for part in parts):
        return "its name is too long"
    return "other objects need a folder of that name" if key in folders else None


def _slashes(key: str) -> Iterable[int]:
    return (at for at, letter in enumerate(key) if letter == "/")

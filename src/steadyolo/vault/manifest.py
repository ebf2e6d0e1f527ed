"""`Manifest`: what a checkpoint consists of. It is written last, so its presence says that the rest is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

from steadyolo.errors import UserError
from steadyolo.vault.digested import from_text, to_text


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file as it was written: its name in the folder, its size and its SHA-256 in hex."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The files of one checkpoint and where it comes from."""

    VERSION: ClassVar[int] = 1

    files: tuple[FileEntry, ...]
    parent: str | None  # the checkpoint committed before it, by this run or the one it goes on from
    writer_id: str
    step: int
    steadyolo_version: str

    @property
    def num_bytes(self) -> int:
        """Size of all files, the manifest's own left out."""
        return sum(entry.num_bytes for entry in self.files)

    def to_json(self) -> bytes:
        """The text of `manifest.json`. It ends with a digest of itself, so that a flipped bit in it is seen too."""
        body = {"version": self.VERSION, **asdict(self)}
        return to_text(body)

    @classmethod
    def from_json(cls, text: bytes) -> Manifest:
        """Inverse of `to_json`.

        Raises: `DataLoss` when the text is not what was written, in any version: the digest covers every other key.
        `UserError` for a newer version, and for unknown or missing keys.
        """
        raw = from_text(text, what="manifest.json")
        if raw.get("version") != cls.VERSION:
            raise UserError(
                f"manifest of version {raw.get('version')!r}, written by steadyolo {raw.get('steadyolo_version')}; "
                f"this steadyolo {steadyolo_version()} reads version {cls.VERSION}",
                remedy="use the steadyolo that wrote it, or a newer one",
            )
        _require_keys(raw, {"version", *(f.name for f in fields(cls))})
        for entry in raw["files"]:
            _require_keys(entry, {f.name for f in fields(FileEntry)})
        files = tuple(FileEntry(**entry) for entry in raw["files"])
        return cls(**{f.name: raw[f.name] for f in fields(cls) if f.name != "files"}, files=files)


def steadyolo_version() -> str:
    """The installed version, or `unknown` where steadyolo runs from its sources without having been installed."""
    try:
        return version("steadyolo")
    except PackageNotFoundError:
        return "unknown"


def _require_keys(raw: Mapping[str, Any], wanted: set[str]) -> None:
    if set(raw) != wanted:
        raise UserError(
            f"manifest.json with missing keys {sorted(wanted - set(raw))} and unknown keys {sorted(set(raw) - wanted)}",
            remedy="use the steadyolo that wrote it",
        )

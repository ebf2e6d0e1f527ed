"""`Copy` and `StoredManifest`: a checkpoint as a store keeps it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import ClassVar

from steadyolo.errors import DataLoss, UserError
from steadyolo.vault.digested import from_text, to_text
from steadyolo.vault.manifest import Manifest
from steadyolo.vault.objects import Data

PART_BYTES = 8 * 2**20  # what a broken transfer loses at most, and what each of the parallel ones holds in memory
_LABEL = re.compile(r"(?P<name>step-\d{8}\.\d{8})\.w(?P<token>\d{6})")


@dataclass(frozen=True, slots=True, order=True)
class Copy:
    """Checkpoint `name`, committed by the process that held `token`. Sorts from the oldest to the newest.

    The token comes first: what a successor saved is newer than anything that its predecessor did meanwhile. It is part
    of the copy's folder, so that two processes never write the same object.
    """

    token: int
    name: str

    @property
    def label(self) -> str:
        """Name of the copy's folder."""
        return f"{self.name}.w{self.token:06d}"

    @classmethod
    def parse(cls, label: str) -> Copy | None:
        """Inverse of `label`; None for any other text."""
        found = _LABEL.fullmatch(label)
        return cls(token=int(found["token"]), name=found["name"]) if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A stretch of a file that is an object of its own, under `key` in the copy's folder."""

    key: str
    file: str
    start: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredManifest:
    """A checkpoint's manifest and the objects that its files were cut into. Put last: it makes the copy count."""

    VERSION: ClassVar[int] = 1

    label: str  # the copy that it belongs to, so that a manifest which was moved is noticed
    checkpoint: str  # the text of the manifest.json in the run folder, which is restored byte for byte
    parts: tuple[Part, ...]

    @property
    def manifest(self) -> Manifest:
        """What the checkpoint consists of. Raises: as `Manifest.from_json`."""
        return Manifest.from_json(self.checkpoint.encode())

    def to_json(self) -> bytes:
        return to_text({"version": self.VERSION, **asdict(self)})

    @classmethod
    def from_json(cls, text: Data, *, where: str) -> StoredManifest:
        """Raises: `DataLoss` when the text or the checkpoint's manifest in it is damaged or they do not belong
        together, `UserError` for another version.
        """
        raw = from_text(text, what=f"manifest.json of {where}", remedy="use another copy; `resume` does so by itself")
        if raw.get("version") != cls.VERSION or set(raw) != {"version", *(f.name for f in fields(cls))}:
            raise UserError(
                f"manifest.json of {where} has version {raw.get('version')!r}, and this steadyolo reads {cls.VERSION}",
                remedy="use the steadyolo that wrote it, or a newer one",
            )
        stored = cls(
            label=raw["label"], checkpoint=raw["checkpoint"], parts=tuple(Part(**part) for part in raw["parts"])
        )
        _check_cover(stored, where)
        return stored


def cut(name: str, num_bytes: int) -> Iterator[tuple[str, int, int]]:
    """Key, start and size of the parts of a file. A file of one part keeps its name."""
    if num_bytes <= PART_BYTES:
        yield name, 0, num_bytes
        return
    for number, start in enumerate(range(0, num_bytes, PART_BYTES)):
        yield f"{name}.part-{number:05d}", start, min(PART_BYTES, num_bytes - start)


def _check_cover(stored: StoredManifest, where: str) -> None:
    """Raise `DataLoss` unless the parts make up the files, without gaps."""
    found: dict[str, int] = {}
    for part in stored.parts:
        if part.start != found.get(part.file, 0):
            raise DataLoss(f"the parts of {part.file} in {where} have gaps", remedy="use another copy")
        found[part.file] = part.start + part.num_bytes
    if found != {entry.name: entry.num_bytes for entry in stored.manifest.files}:
        raise DataLoss(f"the parts in {where} do not make up its files", remedy="use another copy")

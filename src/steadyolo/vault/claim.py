"""`Claim`: who may write a run's copies. A claim is made with a conditional put, so that there is one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import ClassVar

from steadyolo.errors import UserError
from steadyolo.vault.digested import from_text, to_text
from steadyolo.vault.objects import Data


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right to write, of one process. The higher `token` has it; the other stops.

    `tiers` names every place that keeps copies of the run, by tier, so that one of them leads to all.
    """

    VERSION: ClassVar[int] = 1

    token: int
    run_id: str
    writer_id: str
    host: str
    since: str  # UTC, ISO 8601
    tiers: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> bytes:
        return to_text({"version": self.VERSION, **asdict(self)})

    @classmethod
    def from_json(cls, text: Data, *, where: str) -> Claim:
        """Raises: `DataLoss` when the text is damaged, `UserError` for another version."""
        remedy = "wait: it is read again; if it stays so, remove that object while no process writes to this run"
        raw = from_text(text, what=f"writer.json of {where}", remedy=remedy)
        if raw.get("version") != cls.VERSION or set(raw) != {"version", *(f.name for f in fields(cls))}:
            raise UserError(
                f"writer.json of {where} has version {raw.get('version')!r}, and this steadyolo reads {cls.VERSION}",
                remedy="use the steadyolo that wrote it, or a newer one",
            )
        del raw["version"]
        return cls(**raw)

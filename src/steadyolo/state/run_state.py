"""`RunState`: the small part of where a run is. Tensors sit beside it in a `Snapshot`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from steadyolo.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Cursor:
    """The next batch to be consumed: batch `batch` of epoch `epoch`, both counted from 0.

    `batch` equals the number of batches in an epoch while that epoch is trained but not closed (not yet scored).
    """

    epoch: int
    batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """What has been decided from scores so far. Epochs count from 1, as `results.csv` does; 0 is none."""

    best_fitness: float | None = None
    best_epoch: int = 0
    best_tick: int = 0  # the tick of the save that holds the best weights
    stop: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Everything small that the next batch depends on. `cursor` names the next batch to read, not the last one."""

    VERSION: ClassVar[int] = 1

    step: int  # optimizer updates completed
    cursor: Cursor
    pending_batches: int  # batches whose gradients wait for the next update
    epochs_closed: int  # epochs trained and scored
    ema_updates: int
    ledger: Ledger
    loss_means: dict[str, float]  # running means over this epoch's batches; empty at its start
    seconds: float  # time spent training, over all attempts
    skipped: tuple[Cursor, ...] = ()  # batches left out because their loss or gradient was not finite
    optimizer_groups: tuple[dict[str, Any], ...] = ()  # options of the optimizer's parameter groups
    scaler: dict[str, float] | None = None  # gradient scaler, where one is in use

    @classmethod
    def fresh(cls) -> RunState:
        """The state before the first batch."""
        return cls(
            step=0,
            cursor=Cursor(epoch=0, batch=0),
            pending_batches=0,
            epochs_closed=0,
            ema_updates=0,
            ledger=Ledger(),
            loss_means={},
            seconds=0.0,
        )

    def tick(self, num_batches: int) -> int:
        """Count of batches consumed and epochs closed: orders any two states of one run."""
        return self.cursor.epoch * num_batches + self.cursor.batch + self.epochs_closed

    def to_dict(self) -> dict[str, Any]:
        return {"version": self.VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> RunState:
        """Inverse of `to_dict`. Raises `UserError` for unknown keys, missing keys and other versions."""
        wanted = {"version", *(f.name for f in fields(cls))}
        if set(raw) != wanted or raw["version"] != cls.VERSION:
            raise UserError(
                f"not a version {cls.VERSION} run state: version {raw.get('version')!r}, keys {sorted(raw)}",
                remedy="resume with the steadyolo version that wrote it; the checkpoint's manifest names it",
            )
        values = {name: raw[name] for name in wanted - {"version"}}
        try:
            values["cursor"] = Cursor(**raw["cursor"])
            values["ledger"] = Ledger(**raw["ledger"])
            values["skipped"] = tuple(Cursor(**cursor) for cursor in raw["skipped"])
            values["optimizer_groups"] = tuple(dict(group) for group in raw["optimizer_groups"])
        except (TypeError, ValueError) as error:
            raise UserError(
                f"a part of this run state has another shape: {error}",
                remedy="resume with the steadyolo version that wrote it; the checkpoint's manifest names it",
            ) from None
        return cls(**values)

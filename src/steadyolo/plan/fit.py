"""`Fit`: how a step's images are put through the network, which changes its memory and not what is learned from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Images in one forward and backward pass, and how many of the network's layers, from its first on, are computed
    again in the backward pass instead of being kept.
    """

    num_images: int
    num_recomputed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSchedule:
    """Which fit holds at which batch: the planned one, and others from the batches on that did not fit otherwise.

    A function of the batch alone, so that a run which goes back, or goes on elsewhere, computes each batch as before.
    """

    planned: Fit
    changes: tuple[tuple[int, int, Fit], ...] = ()  # epoch and batch from which on it holds, in their order

    def at(self, epoch: int, batch: int = 0) -> Fit:
        """The fit that holds at a batch."""
        return next((change[2] for change in reversed(self.changes) if change[:2] <= (epoch, batch)), self.planned)

    def changed(self, epoch: int, batch: int, fit: Fit) -> FitSchedule:
        """This schedule with `fit` from a batch on; what held later does not count any more."""
        return replace(self, changes=(*self.until(epoch, batch).changes, (epoch, batch, fit)))

    def until(self, epoch: int, batch: int) -> FitSchedule:
        """What this schedule says of the batches before that one."""
        return replace(self, changes=tuple(change for change in self.changes if change[:2] < (epoch, batch)))

    def to_list(self) -> list[dict[str, int]]:
        """JSON values: the planned fit first."""
        changes = ({"epoch": epoch, "batch": batch, **asdict(fit)} for epoch, batch, fit in self.changes)
        return [asdict(self.planned), *changes]

    @classmethod
    def from_list(cls, raw: Sequence[Mapping[str, int]]) -> FitSchedule:
        """Inverse of `to_list`."""
        planned, *changes = raw
        return cls(planned=Fit(**planned), changes=tuple(_change(**change) for change in changes))


def _change(*, epoch: int, batch: int, **fit: int) -> tuple[int, int, Fit]:
    return epoch, batch, Fit(**fit)

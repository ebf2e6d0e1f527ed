"""`MemoryPlan`: what was decided about a run's memory, what it is predicted to need, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from steadyolo.plan.memory import MemoryEstimate, Peak, Workload
from steadyolo.plan.room import Room
from steadyolo.spec.size import size_text


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """The workload that was chosen, and its predicted peaks. Without a `room` nothing was chosen: it is what was asked.

    `fits` None: nobody knows, because no memory was named.
    """

    VERSION: ClassVar[int] = 1

    workload: Workload
    num_batch_images: int
    num_layers: int  # that can be computed again
    estimate: MemoryEstimate
    room: Room | None
    fits: bool | None
    reasons: tuple[str, ...]

    @property
    def measurable_bytes(self) -> int:
        """The peak as a run can measure it: torch counts no context of a GPU, and a host's process is all of it."""
        peaks = (self.estimate.training, self.estimate.validation)
        uncounted = {"context"} if self.workload.device == "cuda" else set()
        return max(sum(size for kind, size in peak.by_kind.items() if kind not in uncounted) for peak in peaks)

    @property
    def lines(self) -> list[str]:
        """The plan in a few lines."""
        peaks = self.estimate
        of = f"; {self.room.told}" if self.room else ""
        fit = self.workload.fit
        layers = f", {fit.num_recomputed} of {self.num_layers} layers recomputed" if fit.num_recomputed else ""
        return [
            f"memory: {size_text(peaks.num_bytes)} predicted (training {size_text(peaks.training.num_bytes)}, "
            f"validation {size_text(peaks.validation.num_bytes)}){of}",
            f"batch {self.num_batch_images} in passes of {fit.num_images}, {self.workload.compute}{layers}",
            *self.reasons,
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        workload = self.workload
        return {
            "version": self.VERSION,
            "model": workload.model,
            "task": workload.task,
            "imgsz": workload.imgsz,
            "device": workload.device,
            "optimizer": workload.optimizer,
            "compute": workload.compute,
            "batch": self.num_batch_images,
            "micro_batch": workload.fit.num_images,
            "recomputed_layers": workload.fit.num_recomputed,
            "num_layers": self.num_layers,
            "validation_batch": workload.val_batch,
            "most_boxes": workload.most_boxes,
            "predicted": {
                "bytes": self.estimate.num_bytes,
                "training": _peak(self.estimate.training),
                "validation": _peak(self.estimate.validation),
            },
            "budget_bytes": self.room.num_bytes if self.room else None,
            "budget": self.room.told if self.room else None,
            "fits": self.fits,
            "reasons": list(self.reasons),
        }


def _peak(peak: Peak) -> dict[str, Any]:
    return {"bytes": peak.num_bytes, "moment": peak.moment, "by_kind": dict(peak.by_kind)}

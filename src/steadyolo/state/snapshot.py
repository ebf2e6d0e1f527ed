"""`Snapshot`: a run's whole state, copied to host memory at a batch boundary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from steadyolo.state.run_state import RunState

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """State, tensors and origin of a run at one batch boundary.

    `tensors` maps a group (model, ema, optimizer, gradients) to named host tensors that nobody else writes to;
    `gradients` is there only when batches wait for their update. `made_from` (JSON values only) is what the run was
    made from: resolved spec, plan, package versions, dataset fingerprint. `files` are small companions kept byte for
    byte, such as `results.csv`.
    """

    name: str  # the checkpoint's folder name; sorts in the order of saving
    state: RunState
    tensors: Mapping[str, Mapping[str, torch.Tensor]]
    made_from: Mapping[str, Any]
    files: Mapping[str, bytes] = field(default_factory=dict)


def checkpoint_name(*, step: int, tick: int) -> str:
    """Folder name of a save: the step, then the tick that orders two saves within one step."""
    return f"step-{step:08d}.{tick:08d}"

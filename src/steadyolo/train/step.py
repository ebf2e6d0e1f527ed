"""One batch, and one optimizer step: forward, backward, finite check, clipping, update, EMA."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from steadyolo.train.precision import Precision


class Branch(Protocol):
    """One head's loss over a part of a batch: `scale x summed / normaliser`, or without `scale` (None) a mean."""

    @property
    def total(self) -> Tensor: ...
    @property
    def normaliser(self) -> Tensor: ...
    @property
    def mass(self) -> Tensor: ...  # what adds up, over the parts, to the batch's normaliser (which is at least 1)
    @property
    def scale(self) -> float | None: ...


class Part(Protocol):
    """A part's loss by branch, and its items for display."""

    @property
    def branches(self) -> Mapping[str, Any]: ...
    @property
    def items(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """Loss of one batch (as Ultralytics scales it), its items, and whether all of it is finite (a device tensor)."""

    loss: Tensor
    items: dict[str, Tensor]
    finite: Tensor


class Stepper:
    """Accumulates gradients batch by batch and applies them. Decides nothing: the run says when."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        criterion: Callable[[Any, dict[str, Any]], Part],
        split: Callable[[dict[str, Any]], Sequence[dict[str, Any]]],
        precision: Precision,
        scaler: torch.amp.GradScaler,
        branch_of: Callable[[str], str],
        max_gradient_norm: float = 10.0,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self._criterion = criterion
        self._split = split
        self._precision = precision
        self._scaler = scaler
        self._max_gradient_norm = max_gradient_norm
        self._parameters = [(branch_of(name), p) for name, p in model.named_parameters() if p.requires_grad]

    def accumulate(self, batch: dict[str, Any]) -> BatchOutcome:
        """Add the gradient of `batch`'s loss to what has been accumulated.

        A batch that `split` takes apart gives the gradient of the whole (BatchNorm statistics aside): each part is
        backpropagated unnormalised, and the sum is divided once by the batch's normaliser.
        """
        parts = self._split(batch)
        if len(parts) == 1:
            part = self._loss(parts[0])
            loss = torch.stack([branch.total for branch in part.branches.values()]).sum()
            self._scaler.scale(loss).backward()
            return BatchOutcome(loss.detach(), part.items, self._is_finite(loss.detach()))
        return self._accumulate_parts(parts)

    def _accumulate_parts(self, parts: Sequence[dict[str, Any]]) -> BatchOutcome:
        held = [p.grad for _, p in self._parameters]
        for _, p in self._parameters:
            p.grad = None
        sums: dict[str, Tensor] = {}
        scales: dict[str, float] = {}
        losses: dict[str, Tensor] = {}
        items: dict[str, Tensor] = {}
        for piece in parts:
            part = self._loss(piece)
            summed = {name: b.total * (b.normaliser / (b.scale or 1.0)) for name, b in part.branches.items()}
            self._scaler.scale(torch.stack(list(summed.values())).sum()).backward()
            for name, branch in part.branches.items():
                sums[name] = sums.get(name, 0.0) + branch.mass
                losses[name] = losses.get(name, 0.0) + summed[name].detach()
                scales[name] = 1.0 if branch.scale is None else scales.get(name, 0.0) + branch.scale
            weight = list(part.branches.values())[-1].normaliser  # items are the last branch's
            for name, item in part.items.items():
                items[name] = items.get(name, 0.0) + item * weight
        normalisers = {name: total.clamp(min=1) for name, total in sums.items()}
        factors = {name: scales[name] / normalisers[name] for name in sums}
        for (branch_name, p), before in zip(self._parameters, held, strict=True):
            if p.grad is not None:
                p.grad.mul_(factors.get(branch_name, factors["main"]))
                if before is not None:
                    p.grad.add_(before)
            else:
                p.grad = before
        loss = torch.stack([losses[name] * factors[name] for name in losses]).sum()
        total = normalisers[next(reversed(normalisers))]
        return BatchOutcome(loss, {name: item / total for name, item in items.items()}, self._is_finite(loss))

    def _is_finite(self, loss: Tensor) -> Tensor:
        """Whether this batch's loss and what it left in the gradients is finite, so that the batch at fault is known.

        With a gradient scaler, a gradient that overflows is the scaler's business and only the loss counts.
        """
        gradients = [p.grad for _, p in self._parameters if p.grad is not None]
        if self._scaler.is_enabled() or not gradients:
            return torch.isfinite(loss)
        return torch.isfinite(loss + torch.stack(torch._foreach_norm(gradients)).sum())

    def _loss(self, batch: dict[str, Any]) -> Part:
        dtype = self._precision.autocast_dtype
        images = batch["img"]
        if self._precision.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        cast = torch.autocast(images.device.type, dtype=dtype) if dtype is not None else contextlib.nullcontext()
        with cast:
            preds = self.model(images)
        # The loss is computed in fp32: its sums over anchors lose digits in bf16 and overflow in fp16.
        return self._criterion(_to_float(preds) if dtype is not None else preds, batch)

    def update(self) -> Tensor:
        """Clip and apply what has been accumulated, and clear it. Returns, on the device, whether it was finite.

        A gradient that is not finite is not applied. With a gradient scaler, overflow is the scaler's business: it
        skips the step and shrinks its scale, so it is reported as finite.
        """
        self._scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in self._parameters], self._max_gradient_norm, foreach=True)
        finite = torch.isfinite(norm)
        if self._scaler.is_enabled():
            self._scaler.step(self.optimizer)
            self._scaler.update()
            finite = torch.ones_like(finite)
        elif getattr(self.optimizer, "_step_supports_amp_scaling", False):
            # Fused kernels skip the update on the device, without asking the host.
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            self.optimizer.grad_scale = None  # type: ignore[attr-defined]
            self.optimizer.step()
        elif bool(finite):
            self.optimizer.step()
        self.optimizer.zero_grad()
        return finite


def _to_float(value: Any) -> Any:
    """Predictions in fp32. Losses ask feature maps (`feats`) for shape and dtype only: those get no memory."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _shapes_only(item) if name == "feats" else _to_float(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to_float(item) for item in value)
    return value


def _shapes_only(maps: Sequence[Tensor]) -> list[Tensor]:
    # In bf16, anchor points beyond 128 cells a side would lose their half.
    return [torch.empty((), dtype=torch.float32, device=m.device).expand(m.shape) for m in maps]

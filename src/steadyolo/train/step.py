"""One batch, and one optimizer step: forward, backward, finite check, clipping, update, EMA."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from steadyolo.train.out_of_memory import Moment, OutOfMemory, is_out_of_memory, told
from steadyolo.train.precision import Precision
from steadyolo.train.ranks import Alone, Ranks

_Result = TypeVar("_Result")


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
    @property
    def branch_of_item(self) -> Mapping[str, str]: ...


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """Loss of one batch (as Ultralytics scales it), its items, and whether all of it is finite (a device tensor)."""

    loss: Tensor
    items: dict[str, Tensor]
    finite: Tensor


class Stepper:
    """Accumulates gradients batch by batch and applies them. Decides nothing: the run says when.

    From `accumulate` to `settle` a batch can be taken back with `roll_back`, until the optimizer begins its step
    (`is_applied`): optimizers go through their parameters group by group, and one that fails is left half done.
    """

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
        ranks: Ranks | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self._criterion = criterion
        self._split = split
        self._precision = precision
        self._scaler = scaler
        self._max_gradient_norm = max_gradient_norm
        self._ranks = ranks or Alone()
        self._norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        self._parameters = [(branch_of(name), p) for name, p in model.named_parameters() if p.requires_grad]
        self._statistics = _Statistics(model)
        self._gradients: list[Tensor | None] | None = None  # as they were before the batch; None: nothing to take back
        self.moment: Moment = "loading"  # what is being done, for whoever tells of a fault
        self.is_applied = False  # the optimizer has begun its step

    def accumulate(self, batch: dict[str, Any], *, weight: float = 1.0) -> BatchOutcome:
        """Add the gradient of `batch`'s loss to what has been accumulated.

        A batch that `split` takes apart, or of which each rank has a share, gives the gradient of the whole (BatchNorm
        statistics aside: the ranks' is their mean). Afterwards all ranks hold the same. With `weight` 0 this process's
        images count for nothing. Raises: OutOfMemory, in all ranks, when an allocation failed in one of them.
        """
        self._statistics.keep()
        # A batch's gradient grows beside what was accumulated: adding costs as much as autograd's own would.
        before = self._gradients = [p.grad for _, p in self._parameters]
        for _, p in self._parameters:
            p.grad = None
        parts = self._split(batch)
        is_whole = len(parts) == 1 and self._ranks.count == 1
        outcome = self._accumulate_whole(batch) if is_whole else self._accumulate_parts(parts, weight)
        self._add(before)
        return replace(outcome, finite=self._is_finite(outcome.loss))

    def _agreed(self, work: Callable[[], _Result]) -> _Result:
        """What `work` returns. No rank goes on from here unless all of them had memory for it."""
        result, error = None, "in another process of this run"
        try:
            result = work()
        except Exception as fault:
            if not is_out_of_memory(fault):
                raise
            error = told(fault)
        (is_short,) = self._ranks.any(result is None)
        if is_short or result is None:
            raise OutOfMemory(self.moment, error, is_shared=True)
        return result

    def _add(self, before: Sequence[Tensor | None]) -> None:
        """Add what was accumulated before to the gradient of this batch, and leave it as it is."""
        both: list[tuple[Tensor, Tensor]] = []
        for (_, p), gradient in zip(self._parameters, before, strict=True):
            if gradient is not None and p.grad is not None:
                both.append((p.grad, gradient))
            elif gradient is not None:
                p.grad = gradient.clone()
        if both:
            torch._foreach_add_([new for new, _ in both], [old for _, old in both])

    def _accumulate_whole(self, batch: dict[str, Any]) -> BatchOutcome:
        def backpropagate() -> BatchOutcome:
            part = self._loss(batch)
            loss = torch.stack([branch.total for branch in part.branches.values()]).sum()
            self._backward(loss)
            return BatchOutcome(loss.detach(), part.items, loss.detach())

        return self._agreed(backpropagate)

    def _accumulate_parts(self, parts: Sequence[dict[str, Any]], weight: float) -> BatchOutcome:
        known: dict[str, Tensor] = {}
        if getattr(self._criterion, "counts_first", False):
            tally = self._agreed(lambda: self._count(parts, weight))
            tally.sum_over(self._ranks)
            known = tally.factors()
        tally = self._agreed(lambda: self._backpropagate(parts, known, weight))
        tally.sum_over(self._ranks)
        self._sum_gradients()
        factors = {} if known else tally.factors()
        for branch, p in self._parameters if factors else ():
            if p.grad is not None:
                p.grad.mul_(factors.get(branch, factors["main"]))
        return tally.outcome()

    def _count(self, parts: Sequence[dict[str, Any]], weight: float) -> Tally:
        """What the batch will be divided by, from passes that leave no trace."""
        with torch.no_grad():
            tally = Tally(weight)
            for part in parts:
                tally.add(self._loss(part))
        self._statistics.restore()
        return tally

    def roll_back(self) -> None:
        """Put everything where it was before the batch, if one has been begun. Not after `is_applied`."""
        if self._gradients is not None:
            self._statistics.restore()
            for (_, p), gradient in zip(self._parameters, self._gradients, strict=True):
                p.grad = gradient
        self.settle()

    def settle(self) -> None:
        """The batch is done, or everything was restored from elsewhere: nothing of it will be taken back."""
        self._gradients, self.moment, self.is_applied = None, "loading", False
        if self._scaler.is_enabled():  # which refuses to unscale the same gradients twice
            self._scaler._per_optimizer_states.pop(id(self.optimizer), None)

    def _backpropagate(self, parts: Sequence[dict[str, Any]], known: Mapping[str, Tensor], weight: float) -> Tally:
        """Backpropagate each part, divided by the batch's normalisers where they are `known`, else not divided."""
        tally = Tally(weight)
        for piece in parts:
            part = self._loss(piece)
            summed = tally.add(part)
            loss = torch.stack([total * known.get(name, 1.0) for name, total in summed.items()]).sum()
            self._backward(loss)
        return tally

    def _backward(self, loss: Tensor) -> None:
        self.moment = "backward"
        self._scaler.scale(loss).backward()

    def _sum_gradients(self) -> None:
        """Give each rank the sum of all gradients, and the mean of what BatchNorm remembers of the images it saw."""
        if self._ranks.count == 1:
            return
        parameters = [p for _, p in self._parameters]
        is_taught = self._ranks.any(*(p.grad is not None for p in parameters))  # a share may hold no object at all
        for parameter, is_taught_somewhere in zip(parameters, is_taught, strict=True):
            if is_taught_somewhere and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norms = [norm for norm in self._norms if norm.training]
        statistics = [s for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None]
        self._ranks.sum_([*(p.grad for p in parameters if p.grad is not None), *statistics])
        if statistics:
            torch._foreach_div_(statistics, self._ranks.count)

    def _is_finite(self, loss: Tensor) -> Tensor:
        """Whether this batch's loss and what it left in the gradients is finite, so that the batch at fault is known.

        With a gradient scaler, a gradient that overflows is the scaler's business and only the loss counts.
        """
        gradients = [p.grad for _, p in self._parameters if p.grad is not None]
        if self._scaler.is_enabled() or not gradients:
            return torch.isfinite(loss)
        return torch.isfinite(loss + torch.stack(torch._foreach_norm(gradients)).sum())

    def _loss(self, batch: dict[str, Any]) -> Part:
        self.moment = "forward"
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
        self.moment = "update"
        self._scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in self._parameters], self._max_gradient_norm, foreach=True)
        finite = torch.isfinite(norm)
        self.is_applied = True
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


class Tally:
    """Sums over the parts of a batch: losses before division, and what the batch divides them by."""

    def __init__(self, weight: float = 1.0) -> None:
        self._weight = weight
        self._losses: dict[str, Tensor] = {}
        self._masses: dict[str, Tensor] = {}
        self._scales: dict[str, Tensor] = {}  # of the branches that are no means
        self._items: dict[str, Tensor] = {}
        self._branch_of_item: Mapping[str, str] = {}

    def add(self, part: Part) -> dict[str, Tensor]:
        """Count a part. Returns its loss by branch as it was before its own division."""
        weight = self._weight
        summed = {name: b.total * (b.normaliser * weight / (b.scale or 1.0)) for name, b in part.branches.items()}
        for name, branch in part.branches.items():
            self._losses[name] = self._losses.get(name, 0.0) + summed[name].detach()
            self._masses[name] = self._masses.get(name, 0.0) + branch.mass * weight
            if branch.scale is not None:
                self._scales[name] = self._scales.get(name, 0.0) + torch.full_like(branch.mass, branch.scale * weight)
        for name, item in part.items.items():
            normaliser = part.branches[part.branch_of_item[name]].normaliser
            self._items[name] = self._items.get(name, 0.0) + item * normaliser * weight
        self._branch_of_item = part.branch_of_item
        return summed

    def sum_over(self, ranks: Ranks) -> None:
        """Make it the tally of all ranks' parts."""
        if ranks.count == 1:
            return
        sums: tuple[dict[str, Tensor], ...] = (self._losses, self._masses, self._scales, self._items)
        dtype = next(iter(self._losses.values())).dtype
        flat = torch.stack([value.to(dtype) for named in sums for value in named.values()])
        ranks.sum_([flat])
        values = iter(flat.unbind())
        for named in sums:
            named.update({name: next(values) for name in named})

    def factors(self) -> dict[str, Tensor]:
        """By branch, what turns a sum into the batch's loss."""
        return {name: self._scales.get(name, 1.0) / mass.clamp(min=1) for name, mass in self._masses.items()}

    def outcome(self) -> BatchOutcome:
        """Loss and items of the whole batch."""
        factors = self.factors()
        loss = torch.stack([self._losses[name] * factors[name] for name in self._losses]).sum()
        items = {
            name: item / self._masses[self._branch_of_item[name]].clamp(min=1) for name, item in self._items.items()
        }
        return BatchOutcome(loss, items, loss)


class _Statistics:
    """Running statistics of a model's normalisation layers, and a copy of them that costs no memory to take."""

    def __init__(self, model: nn.Module) -> None:
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for buffer in model.buffers():
            by_type.setdefault(buffer.dtype, []).append(buffer)
        self._pairs = [(buffers, [buffer.clone() for buffer in buffers]) for buffers in by_type.values()]

    def keep(self) -> None:
        """Remember them as they are."""
        with torch.no_grad():
            for buffers, kept in self._pairs:
                torch._foreach_copy_(kept, buffers)

    def restore(self) -> None:
        """Put them where the last `keep` found them."""
        with torch.no_grad():
            for buffers, kept in self._pairs:
                torch._foreach_copy_(buffers, kept)


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

"""Which models are in memory: decided before any is loaded, and whenever one more comes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from steadyolo.errors import UserError
from steadyolo.spec.size import size_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A model with the memory that it takes, or may take; `used_at_s` orders models by their last request."""

    name: str
    num_bytes: int
    is_pinned: bool = False
    is_busy: bool = False
    used_at_s: float = 0.0


def plan_start(models: Iterable[Resident], *, budget_bytes: int | None) -> tuple[str, ...]:
    """The models to load at first, in this order: pinned ones, then small ones, as many as stay within the budget.

    Small ones first: more models answer soon. Raises: UserError where a model alone, or all pinned ones together, are
    larger than the budget.
    """
    models = sorted(models, key=lambda model: (not model.is_pinned, model.num_bytes, model.name))
    if budget_bytes is None:
        return tuple(model.name for model in models)
    for model in models:
        _refuse_too_large(model, budget_bytes)
    pinned_bytes = sum(model.num_bytes for model in models if model.is_pinned)
    if pinned_bytes > budget_bytes:
        raise UserError(
            f"the pinned models take {size_text(pinned_bytes)}, and {size_text(budget_bytes)} are allowed",
            remedy="raise the memory budget, or pin fewer models",
        )
    chosen, left_bytes = list[str](), budget_bytes
    for model in models:
        if model.num_bytes > left_bytes:
            break
        chosen.append(model.name)
        left_bytes -= model.num_bytes
    return tuple(chosen)


def plan_room(residents: Iterable[Resident], wanted: Resident, *, budget_bytes: int | None) -> tuple[str, ...]:
    """Models to unload so that `wanted` fits, least recently used first; never one that is pinned or busy.

    Raises: UserError where that does not make room; then nothing is to be unloaded.
    """
    if budget_bytes is None:
        return ()
    _refuse_too_large(wanted, budget_bytes)
    others = [model for model in residents if model.name != wanted.name]
    over_bytes = sum(model.num_bytes for model in others) + wanted.num_bytes - budget_bytes
    gone: list[str] = []
    movable = (model for model in others if not (model.is_pinned or model.is_busy))
    for model in sorted(movable, key=lambda model: (model.used_at_s, model.name)):
        if over_bytes <= 0:
            break
        gone.append(model.name)
        over_bytes -= model.num_bytes
    if over_bytes > 0:
        raise UserError(
            f"{size_text(over_bytes)} more are needed for {wanted.name} than unloading others can give",
            remedy="raise the memory budget, pin fewer models, or wait until requests are answered",
        )
    return tuple(gone)


def _refuse_too_large(model: Resident, budget_bytes: int) -> None:
    if model.num_bytes > budget_bytes:
        raise UserError(
            f"{model.name} takes {size_text(model.num_bytes)}, and all models together may take "
            f"{size_text(budget_bytes)}",
            remedy="raise the memory budget, or serve a smaller model",
        )

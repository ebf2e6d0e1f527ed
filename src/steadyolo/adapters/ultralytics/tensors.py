"""Reads a trainer's tensors out by name, and puts them back exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from steadyolo.errors import UserError

_JSON = (bool, int, float, str, type(None))


def named_state(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """The optimizer's state as `<parameter>/<key>` tensors."""
    return {
        f"{names[parameter]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients that wait for their update, by parameter."""
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def groups_to_json(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], ...]:
    """Options of each parameter group (learning rate, momentum, ...), without its parameters."""
    return tuple(
        {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in group.items()
            if isinstance(value, (*_JSON, tuple))
        }
        for group in optimizer.param_groups
    )


def restore_model(model: nn.Module, tensors: Mapping[str, Tensor], *, what: str) -> None:
    """Copy tensors into a module's parameters and buffers, in place. Raises: UserError if names or shapes differ."""
    own = model.state_dict()
    differing = sorted(
        set(own) ^ set(tensors) | {n for n in set(own) & set(tensors) if own[n].shape != tensors[n].shape}
    )
    if differing:
        raise UserError(
            f"the checkpoint's {what} is not this model: {len(differing)} tensors differ, first {differing[0]!r}",
            remedy="resume with the model, the data's class names and the ultralytics version that the run began with",
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    groups: tuple[dict[str, Any], ...],
) -> None:
    """Replace the optimizer's state and group options by saved ones."""
    optimizer.state.clear()
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition("/")
        parameter = parameters[name]
        optimizer.state[parameter][key] = _like(tensor, parameter, optimizer)
    if len(groups) != len(optimizer.param_groups):
        raise UserError(
            f"the checkpoint's optimizer has {len(groups)} parameter groups, not {len(optimizer.param_groups)}",
            remedy="resume with the optimizer that the run began with",
        )
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        fused = group.get("fused")  # the device at hand decides the kernel
        group.update({name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()})
        if fused is not None:
            group["fused"] = fused


def restore_gradients(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Put waiting gradients back, laid out as autograd lays them out: the norm's sum follows the memory order."""
    for name, parameter in parameters.items():
        parameter.grad = _like(tensors[name], parameter, None) if name in tensors else None


def _like(tensor: Tensor, parameter: Tensor, optimizer: torch.optim.Optimizer | None) -> Tensor:
    """A copy of `tensor` on the parameter's device, in the parameter's memory layout where it has its shape."""
    if tensor.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=tensor.dtype, memory_format=torch.preserve_format).copy_(tensor)
    on_host = tensor.ndim == 0 and optimizer is not None and not optimizer.defaults.get("fused")
    return tensor.clone().to("cpu" if on_host else parameter.device)

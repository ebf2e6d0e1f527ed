"""What torch's CPU kernels take inside one operator, beside its results.

Read off with torch's profiler (torch 2.14, oneDNN, x86 with AVX-512); `bench/memory_truth.py` shows what it is worth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten
_FIXED = 8 * 1024  # oneDNN's own, for each thread


def cpu_workspace(func: Any, args: tuple[Any, ...], out: Any) -> int:
    """Bytes that `func` takes and gives back while it runs on `args`, results aside."""
    rule = _RULES.get(func)
    if rule is not None:
        return rule(args, out)
    return _cast(args, out) if torch.Tag.pointwise in func.tags else 0


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _copy(tensor: Tensor) -> int:
    """Convolutions read pictures channel by channel within a pixel; what lies otherwise is copied first."""
    return 0 if tensor.is_contiguous(memory_format=torch.channels_last) else _size(tensor)


def _uses_onednn(x: Tensor, weight: Tensor, groups: int) -> bool:
    """Source: `use_mkldnn` in torch's Convolution.cpp, for dense 2d convolutions."""
    if x.dtype != torch.float32:
        return True
    large = x.shape[0] > 1 or x.numel() > 20480
    threads = torch.get_num_threads() > 1 or x.shape[0] >= 16
    return (threads or weight.shape[-1] != 1) and (groups > 1 or weight.shape[-1] > 3 or large)


def _convolution(args: tuple[Any, ...], out: Tensor) -> int:
    x, weight, groups = args[0], args[1], args[8]
    if x.ndim != 4 or args[6]:
        return 0
    if not _uses_onednn(x, weight, groups):
        return _copy(x) + _columns(x, weight, out)
    reordered = 0 if groups == x.shape[1] else _size(weight)
    return _copy(x) + reordered + _FIXED * torch.get_num_threads()


def _columns(x: Tensor, weight: Tensor, out: Tensor) -> int:
    """Without oneDNN, a convolution that is not 1x1 lays its windows out side by side, a picture for each thread."""
    if weight.shape[-1] == 1:
        return 0
    images: int = x.shape[0]
    return weight[0].numel() * out.shape[-1] * out.shape[-2] * x.element_size() * images


def _convolution_backward(args: tuple[Any, ...], out: Any) -> int:
    gradient, x, weight, groups = args[0], args[1], args[2], args[9]
    if x.ndim != 4 or args[7]:
        return 0
    copies = _copy(gradient) + _copy(x)
    if not _uses_onednn(x, weight, groups):
        return 2 * _copy(gradient) + _copy(x) + _columns(x, weight, gradient)
    # Weights as the kernel wants them, their gradient as it gives it and as torch wants it: one of them is the result.
    beside = 2 * _size(weight)
    if x.dtype != torch.float32:  # summed in fp32, from pictures that each thread turns round for itself
        images = min(torch.get_num_threads(), x.shape[0])
        turned = 4 * weight.numel() + images * (_size(x) + _size(gradient)) // x.shape[0]
        beside = max(beside, _size(weight) + turned)
    return copies + beside


def _as_input(args: tuple[Any, ...], out: Any) -> int:
    return _size(args[1])


def _upsample_backward(args: tuple[Any, ...], out: Tensor) -> int:
    return _copy(args[0]) + _size(out)


def _as_output(args: tuple[Any, ...], out: Tensor) -> int:
    return _size(out)


def _sum(args: tuple[Any, ...], out: Tensor) -> int:
    x: Tensor = args[0]
    return 0 if x.dtype == out.dtype else x.numel() * out.element_size()


def _cast(args: tuple[Any, ...], out: Any) -> int:
    """An operator between dtypes first converts what has another one than it computes in."""
    given = [value for value in args if isinstance(value, Tensor) and value.ndim]
    if len({value.dtype for value in given}) < 2:
        return 0
    common = given[0].dtype
    for value in given[1:]:
        common = torch.promote_types(common, value.dtype)
    return sum(value.numel() * common.itemsize for value in given if value.dtype != common)


def _largest_gradient(args: tuple[Any, ...], out: Any) -> int:
    """A gradient that is laid out otherwise than its parameter is copied, one after another."""
    pairs = zip(args[0], args[1], strict=True)
    return max((_size(g) for p, g in pairs if p.stride() != g.stride()), default=0)


_RULES: dict[Any, Callable[[tuple[Any, ...], Any], int]] = {
    _aten.convolution.default: _convolution,
    _aten.convolution_backward.default: _convolution_backward,
    _aten.native_batch_norm_backward.default: _as_input,
    _aten.upsample_nearest2d_backward.default: _upsample_backward,
    _aten.max_pool2d_with_indices_backward.default: _as_output,
    _aten.binary_cross_entropy_with_logits.default: _as_output,
    _aten.sum.dim_IntList: _sum,
    _aten.sum.default: _sum,
    _aten._fused_sgd_.default: _largest_gradient,
}

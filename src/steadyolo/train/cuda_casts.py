"""`CudaCasts`: what autocast does on CUDA and not on a CPU, for what is traced on a CPU's fake tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

# Source: AT_FORALL_FP32 and AT_FORALL_FP32_SET_OPT_DTYPE in torch's autocast_mode.h (2.14), as far as networks use it.
_IN_FP32 = """
    interpolate exp log log2 log1p pow reciprocal rsqrt softplus layer_norm group_norm binary_cross_entropy_with_logits
"""
_TO_FP32 = "softmax log_softmax sum prod cumsum cumprod"


def _functions(names: str) -> frozenset[Any]:
    places = (torch, Tensor, F)
    return frozenset(getattr(place, name) for place in places for name in names.split() if hasattr(place, name))


class CudaCasts(TorchFunctionMode):
    """While entered, and while autocast is on: functions that CUDA computes in fp32 get fp32, or give it."""

    def __init__(self) -> None:
        super().__init__()
        self._in_fp32 = _functions(_IN_FP32)
        self._to_fp32 = _functions(_TO_FP32)

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_autocast_enabled("cpu"):
            if func in self._in_fp32:
                args, kwargs = tree_map_only(Tensor, _to_float, (args, kwargs))
            elif func in self._to_fp32 and args[0].dtype in _HALVES:
                kwargs = {**kwargs, "dtype": kwargs.get("dtype") or torch.float32}
        return func(*args, **kwargs)


_HALVES = (torch.float16, torch.bfloat16)


def _to_float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _HALVES else tensor

"""Copies a run's tensors to host memory while the loop stands still, as briefly as memory allows."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock

import numpy as np
import torch
from torch import Tensor

Groups = Mapping[str, Mapping[str, Tensor]]


class HostCopies:
    """Reusable host buffers. Fresh memory would cost a page fault for each 4 KiB in the middle of training."""

    def __init__(self) -> None:
        self._free: list[dict[str, dict[str, Tensor]]] = []
        self._lock = Lock()

    def take(self, groups: Groups) -> dict[str, dict[str, Tensor]]:
        """A copy of `groups` that nobody else writes to until it is given to `release`."""
        with self._lock:
            buffers = self._free.pop() if self._free else {}
        on_device = False
        copies: dict[str, dict[str, Tensor]] = {}
        for group, tensors in groups.items():
            if not tensors:
                continue
            held = buffers.get(group, {})
            copies[group] = {name: _buffer(held.get(name), tensor) for name, tensor in tensors.items()}
            for name, tensor in tensors.items():
                _copy(tensor.detach(), copies[group][name])
                on_device |= tensor.is_cuda
        if on_device:
            torch.cuda.synchronize()
        return copies

    def release(self, copies: Groups) -> None:
        """Give the buffers back; one set is kept for the next copy."""
        with self._lock:
            if not self._free:
                self._free.append({group: dict(tensors) for group, tensors in copies.items()})


def _copy(source: Tensor, target: Tensor) -> None:
    if source.device.type == "cpu" and source.dtype not in {torch.bfloat16, torch.float16}:
        # NumPy copies in this thread. torch would split each tensor over its thread pool and wait for it hundreds of
        # times, which is slow whenever a core has something else to do.
        np.copyto(target.numpy(), source.numpy())
    else:
        target.copy_(source, non_blocking=source.is_cuda)


def _buffer(held: Tensor | None, like: Tensor) -> Tensor:
    if held is not None and held.shape == like.shape and held.dtype == like.dtype:
        return held
    return torch.empty_like(like, device="cpu", pin_memory=like.is_cuda, memory_format=torch.preserve_format)

"""Which errors mean that memory is short: real ones where this machine can have them, known texts elsewhere."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from steadyolo.train.out_of_memory import OutOfMemory, forget_attempt, free_memory, is_out_of_memory, told_apart

TOO_MANY_BYTES = 2**60


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(TOO_MANY_BYTES, dtype=torch.uint8),
        lambda: np.empty(TOO_MANY_BYTES, dtype=np.uint8),
        lambda: bytearray(TOO_MANY_BYTES),
    ],
    ids=["torch", "NumPy", "Python"],
)
def test_an_allocation_that_fails_is_told_apart(allocate: Callable[[], object]) -> None:
    with pytest.raises(OutOfMemory) as caught, told_apart(lambda: "forward"):
        allocate()
    assert caught.value.moment == "forward"
    assert caught.value.error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of ..."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:75] . DefaultCPUAllocator: not enough memory: you tried ..."),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a primitive"),
        OSError(12, "Cannot allocate memory"),
        Exception("OpenCV(4.11) error: (-4:Insufficient memory) Failed to allocate 99 bytes in 'OutOfMemoryError'"),
    ],
    ids=str,
)
def test_known_texts_are_told_apart(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shape '[2, 3]' is invalid for input of size 5"),
        OSError(28, "No space left on device"),
        KeyError(1),
    ],
    ids=str,
)
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, told_apart(lambda: "forward"):
        raise error
    assert caught.value is error


def test_a_fault_that_is_forgotten_holds_nothing_of_its_attempt() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def attempt() -> None:
        tensor = torch.zeros(3)
        held.append(weakref.ref(tensor))
        with told_apart(lambda: "backward"):
            torch.empty(TOO_MANY_BYTES, dtype=torch.uint8)

    try:
        attempt()
    except OutOfMemory as error:
        fault = error
    gc.collect()
    assert held[0]() is not None, "nothing was held, so this shows nothing"
    forget_attempt(fault)
    free_memory()
    assert held[0]() is None


class Kept(torch.autograd.Function):
    """Does nothing, and keeps something for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, kept: object) -> torch.Tensor:
        ctx.kept = kept
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


def test_what_a_failed_backward_pass_had_still_to_do_is_let_go() -> None:
    class Something:
        pass

    kept, held = [Something()], []
    held.append(weakref.ref(kept[0]))
    waiting = Kept.apply(torch.zeros(3, requires_grad=True), kept.pop())
    fails = torch.zeros(3, requires_grad=True) * 1
    fails.register_hook(lambda _: torch.empty(TOO_MANY_BYTES, dtype=torch.uint8))
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        (waiting.sum() + fails.sum()).backward()
    del waiting, fails
    gc.collect()
    assert held[0]() is not None, "nothing was held, so this shows nothing"
    free_memory()
    assert held[0]() is None

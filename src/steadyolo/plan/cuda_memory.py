"""What a traced step takes of a CUDA device: its tensors, served by torch's caching allocator, and what comes on top.

`bench/memory_estimate.py` shows what this is worth against public training logs, and where the figures come from.
"""

from __future__ import annotations

from collections.abc import Sequence

from steadyolo.plan.cuda_allocator import MIB, Block, CachingAllocator
from steadyolo.plan.memory import Kind, MemoryEstimate, Peak
from steadyolo.plan.trace import BEFORE, Move, Trace, peak_of

# cuBLAS under CUBLAS_WORKSPACE_CONFIG=:4096:8, which reproducible training sets; one for the thread of the forward
# pass, one for that of the backward pass.
CUBLAS_BYTES = (32 * MIB, 32 * MIB)
# What the driver takes for a process, its kernels and cuDNN's: 300 to 600 MiB, by device and version. Not torch's, so
# in no log of `memory_reserved`; `nvidia-smi` shows it.
CONTEXT_BYTES = 450 * MIB
# Fragments settle within a few steps.
NUM_STEPS = 3
# For workspaces of cuDNN's algorithms, and for fragments beyond those of a steady step. Calibrated on public logs.
MARGIN_SHARE = 0.04


def cuda_estimate(trace: Trace) -> MemoryEstimate:
    """Bytes that the device has to have free for the run to live, by kind."""
    return MemoryEstimate(training=_peak(trace.training), validation=_peak(trace.validation))


def reserved_bytes(
    steps: Sequence[Sequence[Move]], *, cublas_bytes: Sequence[int] = CUBLAS_BYTES, given_back: Sequence[int] = ()
) -> int:
    """The most that the allocator has reserved in `steps`, of which each begins with what is there all the time.

    `given_back` are blocks that were taken and given back before the first step, so that they are there for it.
    """
    allocator = CachingAllocator()
    for num_bytes in cublas_bytes:
        allocator.allocate(num_bytes)
    for block in [allocator.allocate(num_bytes) for num_bytes in given_back]:
        allocator.free(block)
    held: dict[int, Block | None] = {}
    for step in steps:
        lasting = {move.storage for move in step if move.moment == BEFORE}
        for move in step:
            if move.num_bytes < 0:
                allocator.free(held.pop(move.storage))
            elif move.storage not in held:
                held[move.storage] = allocator.allocate(move.num_bytes)
        for storage in held.keys() - lasting:
            allocator.free(held.pop(storage))
    return allocator.peak_reserved_bytes


def _peak(moves: Sequence[Move]) -> Peak:
    if not moves:
        return Peak(by_kind={}, moment="")
    exact = peak_of(moves)
    reserved = reserved_bytes([moves] * NUM_STEPS)
    by_kind: dict[Kind, int] = dict(exact.by_kind)
    by_kind["workspace"] = by_kind.get("workspace", 0) + sum(CUBLAS_BYTES)
    by_kind["overhead"] = round(reserved * (1 + MARGIN_SHARE)) - sum(by_kind.values())
    by_kind["context"] = CONTEXT_BYTES
    return Peak(by_kind=by_kind, moment=exact.moment)

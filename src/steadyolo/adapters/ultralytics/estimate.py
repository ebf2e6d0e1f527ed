"""`estimate`: what a workload is predicted to need of its device's memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from steadyolo.adapters.ultralytics.tracing import trace
from steadyolo.errors import UserError
from steadyolo.plan.cuda_memory import cuda_estimate
from steadyolo.plan.memory import MemoryEstimate, Peak, Workload
from steadyolo.plan.trace import Trace, cpu_estimate

# A process that trains on a CPU, tensors aside: interpreter, torch, Ultralytics, and what its allocator leaves unused.
_PROCESS_BYTES = 800 * 2**20


def estimate(workload: Workload) -> MemoryEstimate:
    """Takes seconds and no device. Raises: UserError for a model that cannot be built, or an unknown device."""
    if workload.device not in _BY_DEVICE:
        raise UserError(
            f"nobody knows the memory of device={workload.device}", remedy=f"use one of {', '.join(_BY_DEVICE)}"
        )
    return _BY_DEVICE[workload.device](trace(workload))


def _on_host(found: Trace) -> MemoryEstimate:
    """What the process will have resident; loader workers are others."""
    tensors = cpu_estimate(found)
    return replace(tensors, training=_with_process(tensors.training), validation=_with_process(tensors.validation))


def _with_process(peak: Peak) -> Peak:
    return replace(peak, by_kind={**peak.by_kind, "context": _PROCESS_BYTES})


_BY_DEVICE: dict[str, Callable[[Trace], MemoryEstimate]] = {"cpu": _on_host, "cuda": cuda_estimate}

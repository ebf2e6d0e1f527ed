"""`estimate`: what a workload is predicted to need of its device's memory."""

from __future__ import annotations

from collections.abc import Callable

from steadyolo.adapters.ultralytics.tracing import trace
from steadyolo.errors import UserError
from steadyolo.plan.cuda_memory import cuda_estimate
from steadyolo.plan.memory import MemoryEstimate, Workload
from steadyolo.plan.trace import Trace, cpu_estimate

_BY_DEVICE: dict[str, Callable[[Trace], MemoryEstimate]] = {"cpu": cpu_estimate, "cuda": cuda_estimate}


def estimate(workload: Workload) -> MemoryEstimate:
    """Takes seconds and no device. On a CPU it is the step's tensors: `plan.host` adds the process around them.

    Raises: UserError for a model that cannot be built, or an unknown device.
    """
    if workload.device not in _BY_DEVICE:
        raise UserError(
            f"nobody knows the memory of device={workload.device}", remedy=f"use one of {', '.join(_BY_DEVICE)}"
        )
    return _BY_DEVICE[workload.device](trace(workload))

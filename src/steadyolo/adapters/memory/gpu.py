"""Memory of a CUDA device, and who holds it: asked of NVML where nvidia-ml-py is installed, otherwise of torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch

from steadyolo.plan.room import DeviceMemory, MemoryUser

_UNKNOWN_BYTES = 2**63  # NVML's numbers beyond it mean that the driver does not tell


def gpu_memory(index: int) -> DeviceMemory | None:
    """What this process may come to hold of device `index` (torch's counting); None where there is no such device."""
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        return None
    told = _told_by_nvml(index)
    if told is None:
        free_bytes, total_bytes = torch.cuda.mem_get_info(index)
        own_bytes = torch.cuda.memory_reserved(index)
        return DeviceMemory(
            name=f"cuda:{index}",
            total_bytes=total_bytes,
            free_bytes=free_bytes + own_bytes,
            limit="as the driver says",
        )
    return told


def _told_by_nvml(index: int) -> DeviceMemory | None:
    """The same from NVML, which needs no CUDA context and names who else is there; None where it is not to be had."""
    with _nvml() as nvml:
        if nvml is None:
            return None
        try:
            uuid = str(torch.cuda.get_device_properties(index).uuid)
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        except nvml.NVMLError:
            return None
    held = {one.pid: int(one.usedGpuMemory or 0) for one in running}
    others = tuple(
        MemoryUser(name=_name(pid), num_bytes=num_bytes)
        for pid, num_bytes in held.items()
        if pid != os.getpid() and 0 < num_bytes < _UNKNOWN_BYTES
    )
    own_bytes = held.get(os.getpid(), 0)
    return DeviceMemory(
        name=f"cuda:{index}",
        total_bytes=int(memory.total),
        free_bytes=int(memory.free) + (own_bytes if own_bytes < _UNKNOWN_BYTES else 0),
        limit="as NVML says",
        others=others,
    )


@contextmanager
def _nvml() -> Iterator[Any]:
    """The library, ready for questions; None where it is not installed or finds no driver."""
    try:
        import pynvml
    except ImportError:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _name(pid: int) -> str:
    try:
        return f"{psutil.Process(pid).name()} (pid {pid})"
    except psutil.Error:  # in another container, or gone
        return f"pid {pid}"

"""Watches memory while a run goes on: told at the close of each epoch, with a warning before a limit is reached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from steadyolo.adapters.memory.gpu import gpu_memory
from steadyolo.adapters.memory.host import host_memory, peak_resident_bytes, proportional_bytes
from steadyolo.events import Event, MemoryGrowing, MemoryMeasured
from steadyolo.plan.growth import foreseen_growth

_HOST = "this process and its loader workers"


class MemoryWatch:
    """Measures a process on `device`. What grows is warned of once, and again only when less than half the epochs that
    were left then are left.
    """

    def __init__(self, device: torch.device, emit: Callable[[Event], None]) -> None:
        self._device, self._emit = device, emit
        self._series: dict[str, list[int]] = {}
        self._warned: dict[str, int] = {}

    def close_epoch(self, epoch: int, *, num_epochs_left: int) -> None:
        """Tell what is held at the close of `epoch` (counted from 1), and what will run out in those that are left."""
        host = host_memory()
        own_bytes = proportional_bytes()
        workers_bytes = sum(proportional_bytes(child) for child in _children())
        allocated = reserved = used = total = None
        if self._device.type == "cuda":
            index = self._device.index or 0
            allocated = torch.cuda.memory_allocated(index)
            reserved = torch.cuda.max_memory_reserved(index)
            torch.cuda.reset_peak_memory_stats(index)
            there = gpu_memory(index)
            if there is not None:
                now_bytes = torch.cuda.memory_reserved(index)
                used, total = there.total_bytes - there.free_bytes + now_bytes, there.total_bytes
                self._look(str(self._device), reserved, there.free_bytes, num_epochs_left)
        self._emit(
            MemoryMeasured(
                epoch=epoch,
                process_bytes=own_bytes,
                process_peak_bytes=peak_resident_bytes(),
                workers_bytes=workers_bytes,
                host_limit_bytes=host.free_bytes + workers_bytes,
                allocated_bytes=allocated,
                reserved_peak_bytes=reserved,
                device_used_bytes=used,
                device_total_bytes=total,
            )
        )
        self._look(_HOST, own_bytes + workers_bytes, host.free_bytes + workers_bytes, num_epochs_left)

    def _look(self, what: str, held_bytes: int, limit_bytes: int, num_epochs_left: int) -> None:
        series = self._series.setdefault(what, [])
        series.append(held_bytes)
        growth = foreseen_growth(series, limit_bytes=limit_bytes, num_epochs_left=num_epochs_left)
        if growth is None or growth.num_epochs_left * 2 > self._warned.get(what, 2 * growth.num_epochs_left):
            return
        self._warned[what] = growth.num_epochs_left
        self._emit(
            MemoryGrowing(
                what=what,
                held_bytes=held_bytes,
                step_bytes=growth.step_bytes,
                limit_bytes=limit_bytes,
                epochs_left=growth.num_epochs_left,
            )
        )


def _children() -> list[Path]:
    """The /proc folders of this process's children: loader workers, as a rule."""
    return [Path(f"/proc/{child.pid}") for child in psutil.Process().children(recursive=True)]

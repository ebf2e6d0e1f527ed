"""Copies a run's tensors to host memory while nothing changes them, so that the loop hardly stands still."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from threading import Lock, Thread

import numpy as np
import torch
from torch import Tensor

from steadyolo.state.host_array import host_array

Groups = Mapping[str, Mapping[str, Tensor]]
Copies = dict[str, dict[str, Tensor]]


class HostCopies:
    """Reusable host buffers. Fresh memory would cost a page fault for each 4 KiB in the middle of training."""

    def __init__(self) -> None:
        self._free: list[Copies] = []
        self._lock = Lock()
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def take(self, groups: Groups) -> Copies:
        """A copy of `groups` that nobody else writes to until it is given to `release`."""
        taken: list[Copies] = []
        self.begin(groups, at_once=(), then=taken.append)
        self.wait()
        return taken[0]

    def begin(self, groups: Groups, *, at_once: Collection[str], then: Callable[[Copies], None]) -> None:
        """Copy `<group>/<name>` of `at_once` now and the rest in the background, then hand the copy to `then`.

        Until `wait` returns, nobody may change what is copied in the background: between two optimizer updates, that is
        everything but gradients and the statistics of normalisation layers. From an accelerator all is copied now.
        Copies that are begun before an earlier one is done come after it, and nobody waits.
        """
        before = self._thread
        with self._lock:
            held = self._free.pop() if self._free else {}
        copies: Copies = {group: dict.fromkeys(tensors) for group, tensors in groups.items() if tensors}  # type: ignore[misc]
        on_device = any(tensor.is_cuda for tensors in groups.values() for tensor in tensors.values())
        now = frozenset(at_once)

        def copy(wanted: Callable[[str], bool]) -> None:
            for group, tensors in groups.items():
                for name, tensor in tensors.items():
                    if wanted(f"{group}/{name}"):
                        buffer = _buffer(held.get(group, {}).get(name), tensor)
                        _copy(tensor.detach(), buffer)
                        copies[group][name] = buffer

        def finish() -> None:
            if before is not None:
                before.join()
            try:
                copy(lambda name: name not in now)
                if on_device:
                    torch.cuda.synchronize()
                then(copies)
            except BaseException as error:  # noqa: BLE001  # the thread's edge: raised again where it is waited for
                self._error = self._error or error  # the first one tells most

        copy(now.__contains__)
        if on_device:
            finish()
            return
        self._thread = Thread(target=finish, name="steadyolo-copy", daemon=True)
        self._thread.start()

    def wait(self) -> float:
        """Return when nothing is being copied; how long that took, in seconds. Raises: what the copy raised."""
        started = time.monotonic()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return time.monotonic() - started

    def release(self, copies: Groups) -> None:
        """Give the buffers back; one set is kept for the next copy."""
        with self._lock:
            if not self._free:
                self._free.append({group: dict(tensors) for group, tensors in copies.items()})


def _copy(source: Tensor, target: Tensor) -> None:
    if source.device.type == "cpu":
        np.copyto(host_array(target), host_array(source))
    else:
        target.copy_(source, non_blocking=source.is_cuda)


def _buffer(held: Tensor | None, like: Tensor) -> Tensor:
    if held is not None and held.shape == like.shape and held.dtype == like.dtype:
        return held
    return torch.empty_like(like, device="cpu", pin_memory=like.is_cuda, memory_format=torch.preserve_format)

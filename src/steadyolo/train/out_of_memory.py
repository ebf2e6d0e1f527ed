"""What running out of memory looks like, and what gives some back."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from steadyolo.plan.recovery import Misfit
from steadyolo.state.host_memory import return_freed_memory
from steadyolo.state.run_state import Cursor, RunState

Moment = Literal["loading", "forward", "backward", "update", "ema", "validation", "saving"]

_TEXTS = (  # of errors that have no type of their own on every device, in lower case
    "out of memory",  # torch, on accelerators
    "can't allocate memory",  # torch's allocator on a CPU
    "not enough memory",  # the same, on Windows
    "cannot allocate memory",
    "insufficient memory",  # OpenCV
    "bad_alloc",  # C++
    "cudnn_status_alloc_failed",
    "cublas_status_alloc_failed",
    "cusolver_status_alloc_failed",
    "unable to find a valid cudnn algorithm",  # none whose workspace fits
    "unable to find an engine",
    "could not create a primitive",  # oneDNN, when its scratch memory cannot be had
)
_UNSUPPORTED = "could not create a primitive descriptor"  # oneDNN, for what it does not implement


class OutOfMemory(Exception):
    """An allocation failed at `moment` of a batch, which has not been learned from, or not whole.

    `is_shared`: every process of the run knows of it already, and raises the same.
    """

    def __init__(self, moment: Moment, error: str, *, is_shared: bool = False) -> None:
        self.is_shared = is_shared
        self.moment: Moment = moment
        self.error = error
        super().__init__(f"out of memory ({moment}): {self.error}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """A fault of memory of which every trace is gone: where it was, and where the run is now."""

    at: Cursor  # the batch that has to fit
    misfit: Misfit
    state: RunState  # where to go on: before that batch, in which everything is as it was


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: of an accelerator, the host, NumPy, OpenCV or a library below them."""
    if {kind.__name__ for kind in type(error).__mro__} & {"MemoryError", "OutOfMemoryError"}:  # the latter is torch's
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return any(known in text for known in _TEXTS) and _UNSUPPORTED not in text


def told(error: BaseException) -> str:
    """The first line of an error; Python's own of this kind say nothing but their type."""
    return str(error).partition("\n")[0] or type(error).__name__


@contextlib.contextmanager
def told_apart(moment: Callable[[], Moment]) -> Iterator[None]:
    """Raise `OutOfMemory` for whatever error means that an allocation failed; other errors pass."""
    try:
        yield
    except OutOfMemory:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemory(moment(), told(error)) from None
        raise


def forget_attempt(fault: BaseException) -> None:
    """Let go of the frames that a fault came through, and with them of the tensors of the failed attempt."""
    fault.__traceback__ = fault.__context__ = fault.__cause__ = None


def free_memory() -> None:
    """Give back what is kept for later use: by autograd, the garbage collector, torch's allocator on an accelerator,
    and glibc.

    On a CPU, what was still to be done of a backward pass that failed waits in a queue, with all the tensors that it
    refers to, until the next pass: an empty one.
    On an accelerator, segments that can grow are used from now on, unless the allocator was configured by the user:
    what is free may lie in pieces.
    """
    import torch  # the loop, which only knows of the fault, needs none

    with torch.enable_grad():
        torch.zeros((), requires_grad=True).mul(1).backward()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        configure = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
        if configure is not None and not os.environ.keys() & {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"}:
            configure("expandable_segments:True")
    return_freed_memory()

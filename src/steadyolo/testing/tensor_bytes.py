"""What a piece of work holds of a host's memory at its worst moment, in tensors."""

from __future__ import annotations

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], object]) -> int:
    """The most bytes of CPU tensors that `work` takes beyond what was there before, as torch's profiler counts them.

    What `work` frees of earlier tensors counts as room: let go of them first.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    held = most = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most

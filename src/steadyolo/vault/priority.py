"""What runs beside training gives way to it."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

_LAST = 19  # the niceness of those that come last: a sixtieth of a core where all are wanted, and any that is idle


def give_way() -> None:
    """Let the threads of training come before the calling one, and before all that it starts.

    Where training computes on every core, its threads wait for each other, so that what one of them loses all lose. On
    Linux niceness and scheduling policy are a thread's own and are inherited, so that this reaches those that transfer,
    too; a thread of the policy for batches does not interrupt one that computes. Elsewhere nothing happens.
    Only for what may wait: a save that is to be acknowledged soon may not.
    """
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LAST)
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))

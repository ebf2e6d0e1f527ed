"""What runs beside training gives way to it."""

from __future__ import annotations

import os
import threading

_NICER = 10  # what runs behind needs a few per cent of a core, and may wait for them


def give_way() -> None:
    """Let the threads of training come before the calling one, and before all that it starts.

    On Linux niceness is a thread's own and is inherited, so that this reaches the transfers' threads too. Elsewhere
    nothing happens.
    """
    try:
        training = os.getpriority(os.PRIO_PROCESS, os.getpid())  # the main thread's
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(19, training + _NICER))
    except (OSError, AttributeError):
        return

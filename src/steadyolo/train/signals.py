"""Turns signals into a request to stop, and makes sure that the request is met in time."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)  # the last: a closed terminal
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: interrupted after saving, run `steadyolo resume`


class StopRequest:
    """While entered, the stop signals set `requested` instead of ending the process.

    A request that is not met within `grace_s` seconds (a step or a loader that takes too long) ends the process through
    `overdue`, so that a preempted machine never takes the newest checkpoint's acknowledgement with it. Further signals
    change nothing. Outside the main thread no handler can be set; then only `request` works.
    """

    def __init__(self, *, grace_s: float, overdue: Callable[[], None], on_signal: Callable[[str], None]) -> None:
        """May be entered again after it was left; a request stays."""
        self.requested = False
        self.signal_name: str | None = None
        self._grace_s = grace_s
        self._overdue = overdue
        self._on_signal = on_signal
        self._told = False
        self._timer: threading.Timer | None = None
        self._deadline_s = 0.0
        self._before: dict[signal.Signals, Any] = {}
        self._owner_pid = os.getpid()

    def request(self, name: str = "request") -> None:
        """Ask for the end of the run. Only the first request counts."""
        if self.requested:
            return
        self.signal_name = name
        self._start_timer()
        self.requested = True

    def _start_timer(self) -> None:
        self._deadline_s = self._deadline_s or time.monotonic() + self._grace_s
        self._timer = threading.Timer(max(0.0, self._deadline_s - time.monotonic()), self._overdue)
        self._timer.daemon = True
        self._timer.start()

    def remaining_s(self) -> float:
        """Seconds until `overdue` ends the process; all of the grace while nothing is requested."""
        return self._deadline_s - time.monotonic() if self._deadline_s else self._grace_s

    def acknowledged(self) -> bool:
        """True when a stop was requested; tells `on_signal` once, outside the handler."""
        if self.requested and not self._told:
            self._told = True
            self._on_signal(self.signal_name or "request")
        return self.requested

    def __enter__(self) -> StopRequest:
        if self.requested:
            self._start_timer()
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                    continue  # started under nohup, to outlive its terminal
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()
        if self._timer is not None and self._timer.is_alive():
            self._timer.cancel()
            self._timer = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._owner_pid:  # a loader's worker inherits this handler and has nothing to decide
            self.request(signal.Signals(number).name)


def exit_at_once(code: int = EXIT_INTERRUPTED) -> None:
    """End the process without running anything else: what is committed stays, what is not never counted."""
    os._exit(code)

"""Turns signals into a request to stop, and makes sure that the request is met in time."""

from __future__ import annotations

import math
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
    `overdue`, so that a preempted machine never takes the newest checkpoint's acknowledgement with it. The first
    request names the reason; later ones can only bring the deadline forward, so that more signals of one kind change
    nothing. Outside the main thread no handler can be set; then only `request` works. Any thread may request.
    """

    def __init__(self, *, grace_s: float, overdue: Callable[[], None], on_signal: Callable[[str], None]) -> None:
        """May be entered again after it was left; a request stays."""
        self.requested = False
        self.signal_name: str | None = None
        self._grace_s = grace_s
        self._overdue = overdue
        self._on_signal = on_signal
        self._told = False
        self._timers: list[threading.Timer] = []  # the earliest decides
        self._deadline_s = math.inf
        self._requesting = threading.RLock()  # reentrant: a handler may interrupt a request of its own thread
        self._before: dict[signal.Signals, Any] = {}
        self._owner_pid = os.getpid()

    def request(self, name: str = "request", grace_s: float | None = None) -> None:
        """Ask for the end of the run, for the reason `name`.

        Whoever knows that there is more time than the usual says so in `grace_s`; less than the usual is not given.
        """
        with self._requesting:
            deadline_s = time.monotonic() + max(self._grace_s, grace_s or 0.0)
            if deadline_s < self._deadline_s:
                self._deadline_s = deadline_s
                self._start_timer()
            if not self.requested:
                self.signal_name = name
                self.requested = True

    def _start_timer(self) -> None:
        timer = threading.Timer(max(0.0, self._deadline_s - time.monotonic()), self._overdue)
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    def remaining_s(self) -> float:
        """Seconds until `overdue` ends the process; all of the grace while nothing is requested."""
        return self._deadline_s - time.monotonic() if self.requested else self._grace_s

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
        while self._timers:
            self._timers.pop().cancel()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._owner_pid:  # a loader's worker inherits this handler and has nothing to decide
            self.request(signal.Signals(number).name)


def exit_at_once(code: int = EXIT_INTERRUPTED) -> None:
    """End the process without running anything else: what is committed stays, what is not never counted."""
    os._exit(code)

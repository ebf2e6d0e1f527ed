"""`watch_notices`: hears of the end of this machine before it comes."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from steadyolo.adapters.notices.detection import ADDRESSES, DMI, VARIABLE, Service, read_dmi, service_here
from steadyolo.adapters.notices.notice import Notice, Provider
from steadyolo.adapters.notices.services import FAILURES, Asking, asking

logger = logging.getLogger(__name__)

INTERVAL_S: Mapping[Provider, float] = {"aws": 5.0, "google": 1.0, "azure": 1.0, "alibaba": 5.0}
_MOST_INTERVALS = 8  # between questions to a service that fails: still less than any provider's notice
_LEAVE_S = 0.5


@contextmanager
def watch_notices(
    on_notice: Callable[[Notice], None],
    *,
    environment: Mapping[str, str] = os.environ,
    dmi_folder: Path = DMI,
    addresses: Mapping[Provider, str] = ADDRESSES,
    interval_s: float | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    monotonic: Callable[[], float] = time.monotonic,
) -> Iterator[Provider | None]:
    """While entered, `on_notice` is called once for each notice, on a thread of the watch.

    Yields whose metadata service is asked. On a machine of no provider that is known that is None, and there is neither
    a thread nor a request; `STEADYOLO_METADATA` overrides what the firmware says. What the service does wrong is logged
    once and reaches nobody. Leaving waits for a call of `on_notice` that is under way, and otherwise for at most half a
    second; nothing is told after it.
    Raises: UserError for a `STEADYOLO_METADATA` that cannot be meant.
    """
    service = service_here(environment.get(VARIABLE, ""), read_dmi(dmi_folder), addresses)
    if service is None:
        yield None
        return
    watcher = _Watcher(
        service,
        asking(service, monotonic=monotonic),
        on_notice,
        interval_s=INTERVAL_S[service.provider] if interval_s is None else interval_s,
        now=now,
    )
    watcher.start()
    try:
        yield service.provider
    finally:
        watcher.stop()


def wait_s(interval_s: float, num_failures: int) -> float:
    """Until the next question, after that many failures in a row."""
    return interval_s * min(2.0 ** min(num_failures, 10), _MOST_INTERVALS)


class _Watcher:
    """The thread that asks, and what it has told."""

    def __init__(
        self,
        service: Service,
        asked: Asking,
        on_notice: Callable[[Notice], None],
        *,
        interval_s: float,
        now: Callable[[], datetime],
    ) -> None:
        self._service = service
        self._asked = asked
        self._on_notice = on_notice
        self._interval_s = interval_s
        self._now = now
        self._told: set[tuple[str, str]] = set()
        self._complained = False
        self._stopped = threading.Event()
        self._telling = threading.Lock()  # held while telling, so that nothing is told once `stop` has returned
        self._thread = threading.Thread(target=self._work, name="steadyolo-notices", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._telling:
            self._stopped.set()
        self._thread.join(_LEAVE_S)  # one that waits for an answer ends by itself when its time is up

    def _work(self) -> None:
        num_failures = 0
        while not self._stopped.is_set():
            try:
                for notice in self._asked.notices(self._now()):
                    self._tell(notice)
                num_failures = 0
            except FAILURES as error:
                num_failures += 1
                self._complain(error)
            self._stopped.wait(wait_s(self._interval_s, num_failures))

    def _tell(self, notice: Notice) -> None:
        with self._telling:
            if self._stopped.is_set() or (notice.kind, notice.text) in self._told:
                return
            self._told.add((notice.kind, notice.text))
            try:
                self._on_notice(notice)
            except Exception:  # the listener's edge: others still have to hear of the next notice
                logger.exception("%s could not be passed on", notice)

    def _complain(self, error: Exception) -> None:
        if not self._complained and not self._stopped.is_set():
            self._complained = True
            logger.warning(
                "the metadata service of %s at %s does not answer as it should (%s: %s): notices of the end of this "
                "machine may not be heard. It is asked again; %s=off ends that.",
                self._service.provider,
                self._service.address,
                type(error).__name__,
                error,
                VARIABLE,
            )

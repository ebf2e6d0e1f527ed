"""`Patience`: how long a store that does not answer is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from steadyolo.errors import Transient
from steadyolo.plan.uploads import plan_wait_s

_Result = TypeVar("_Result")


class Patience:
    """How long a store that does not answer is tried again, over all that is asked of it."""

    def __init__(
        self,
        patience_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._tell = tell
        self._ends_at = clock() + patience_s

    def keep_trying(self, work: Callable[[], _Result]) -> _Result:
        """What `work` returns, when it does. Raises: its last `Transient` once patience is used up."""
        num_failures = 0
        while True:
            try:
                return work()
            except Transient as error:
                num_failures += 1
                wait_s = plan_wait_s(num_failures=num_failures, chance=0.5)
                if self._clock() + wait_s > self._ends_at:
                    raise
                self._tell(f"{error.message}; trying again in {wait_s:.0f} s")
                self._sleep(wait_s)

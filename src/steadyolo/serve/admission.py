"""Who is let in: a request that could not be answered in its time is told so at once, before it costs anything."""

from __future__ import annotations

from dataclasses import dataclass

_NEWEST_SHARE = 0.2  # of each measurement in the running mean
_LEAST_WAIT_S = 0.05  # what a client is told at least: it has to come back a moment later, not at once


@dataclass(slots=True)
class Pace:
    """Seconds that one image takes of a worker that has always another to do: what a queue moves on by."""

    mean_s: float = 0.0
    _since_s: float | None = None  # when it last finished one, or began after having had nothing to do

    def begins(self, now_s: float) -> None:
        """A worker with nothing to do got something."""
        self._since_s = now_s

    def finishes(self, now_s: float, *, is_idle: bool) -> None:
        """One is done; `is_idle` where it was the last."""
        if self._since_s is not None:
            took_s = now_s - self._since_s
            self.mean_s = took_s if not self.mean_s else self.mean_s + _NEWEST_SHARE * (took_s - self.mean_s)
        self._since_s = None if is_idle else now_s

    def stops(self) -> None:
        """The worker is gone: what it had was not done at any pace."""
        self._since_s = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """The limits of a queue. `margin` is how much longer than predicted a wait may turn out."""

    num_queued: int = 512
    num_bytes: int = 512 << 20
    latency_s: float = 2.0
    margin: float = 1.5

    def refusal_s(
        self, *, num_ahead: int, num_bytes: int, each_s: float, num_workers: int, timeout_s: float
    ) -> float | None:
        """None for a request that is let in; else after how many seconds it would be.

        `num_ahead` were accepted and are not answered, `num_bytes` is what they hold with this one. One that has
        nobody ahead is always let in: a pace measured in bad times must not keep a service shut.
        """
        if not num_ahead:
            return None
        limit_s = min(self.latency_s, timeout_s)
        predicted_s = self.margin * each_s * (num_ahead / max(num_workers, 1) + 1)
        over_s = predicted_s - limit_s
        if over_s > 0:
            return max(_LEAST_WAIT_S, min(over_s, 60.0))
        if num_ahead >= self.num_queued or num_bytes > self.num_bytes:
            return max(_LEAST_WAIT_S, predicted_s / 2)
        return None

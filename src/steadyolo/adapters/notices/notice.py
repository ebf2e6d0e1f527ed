"""`Notice`: what a cloud says about the end of this machine."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

Provider = Literal["aws", "google", "azure", "alibaba"]
PROVIDERS: tuple[Provider, ...] = ("aws", "google", "azure", "alibaba")


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """The provider is going to take this machine away, or warns that it may.

    `kind` is the provider's word: terminate, stop, hibernate, preempt, reboot or redeploy; rebalance only warns.
    `deadline_at` is when the machine goes, and None where nothing is decided. `text` is the same however often one
    notice is read, and differs between notices.
    """

    provider: Provider
    kind: str
    deadline_at: datetime | None
    text: str

    def seconds_left(self, now: datetime) -> float | None:
        """Until the machine goes; 0 where that should have been before `now`, None where nothing is decided."""
        return None if self.deadline_at is None else max(0.0, (self.deadline_at - now).total_seconds())

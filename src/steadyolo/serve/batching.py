"""Which images go through a session together, and when: decided purely, with the clock passed in."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[Item]):
    item: Item
    kind: Hashable
    since_s: float


@dataclass(slots=True)
class Batcher(Generic[Item]):
    """Forms batches, oldest first, of images of one `kind` (engine and shape), in the sizes that `buckets` has for it.

    A batch leaves when it is full, when nothing that could join it is on its way, or when its oldest image has been
    held for `hold_s`. What is in the background goes alone: when nothing else waits, or has waited for `patience_s`.
    """

    hold_s: float = 0.0
    patience_s: float = 1.0
    buckets: dict[Hashable, tuple[int, ...]] = field(default_factory=dict)  # one by one where a kind has none
    _waiting: deque[_Waiting[Item]] = field(default_factory=deque)
    _background: deque[_Waiting[Item]] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, item: Item, kind: Hashable, *, now_s: float) -> None:
        """`item` is ready to run."""
        self._waiting.append(_Waiting(item, kind, now_s))

    def put_behind(self, item: Item, *, now_s: float) -> None:
        """`item` may wait until nothing else does."""
        self._background.append(_Waiting(item, None, now_s))

    def take(self, *, now_s: float, num_coming: int) -> list[Item]:
        """What leaves now; empty when nothing does. `num_coming` images are being decoded."""
        if self._background and self._may_overtake(now_s, num_coming):
            return [self._background.popleft().item]
        if not self._waiting:
            return []
        oldest = self._waiting[0]
        buckets = self.buckets.get(oldest.kind, (1,))
        alike = [one for one in self._waiting if one.kind == oldest.kind][: buckets[-1]]
        if len(alike) < buckets[-1] and num_coming and now_s - oldest.since_s < self.hold_s:
            return []
        batch = alike[: max((size for size in buckets if size <= len(alike)), default=1)]
        for one in batch:
            self._waiting.remove(one)
        return [one.item for one in batch]

    def asks_again_in_s(self, *, now_s: float) -> float | None:
        """When `take` has to be asked again though nothing comes; None when nothing waits."""
        times_s = [self._waiting[0].since_s + self.hold_s] if self._waiting else []
        times_s += [self._background[0].since_s + self.patience_s] if self._background else []
        return max(0.0, min(times_s) - now_s) if times_s else None

    def _may_overtake(self, now_s: float, num_coming: int) -> bool:
        is_alone = not self._waiting and not num_coming
        return is_alone or now_s - self._background[0].since_s >= self.patience_s

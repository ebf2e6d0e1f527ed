"""What runs in a worker, and how: the words that its front and it share. Light to import."""

from __future__ import annotations

from dataclasses import dataclass, field

from steadyolo.serve import spawning
from steadyolo.serve.session import SessionSettings

HANG_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSettings:
    """How a worker loads a model and keeps it warm."""

    warm_up: bool = True
    check: bool = True  # the golden image, at first and whenever it is refreshed
    verify: bool = True  # every byte of the files
    max_batch: int = 1
    tight_shapes: bool = False  # pictures that are not square go through smaller shapes, each of which is warmed
    hold_s: float = 0.0  # for which an image may wait for others that are being decoded
    warm_limit_s: float = 20.0  # for each batch size
    idle_s: float = 1.0  # after which the golden picture goes the whole way, so that nothing gets cold
    check_s: float = 30.0  # after which its answer is checked, however busy
    hang_s: float = HANG_S  # a run that takes longer, and ten times what it usually does, has hung


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One worker process, for one device."""

    name: str
    device: str = "cpu"
    session: SessionSettings = field(default_factory=SessionSettings)
    load: LoadSettings = field(default_factory=LoadSettings)
    command: tuple[str, ...] = spawning.WORKER
    hang_s: float = HANG_S  # without a sign of life
    window: int = 4  # requests that its worker has at once
    niceness: int = 0
    is_fallback: bool = False
    is_restarted: bool = True

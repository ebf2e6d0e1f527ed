"""What a service is asked to be."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from steadyolo.serve import spawning
from steadyolo.serve.admission import Admission
from steadyolo.serve.place import HANG_S, LoadSettings, Place
from steadyolo.serve.session import SessionSettings

_FALLBACK_HANG_S = 0.5  # where another answers, a worker that may have hung is not waited for


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedName:
    """A model as it is asked for: what it is called, and where it is."""

    name: str
    source: str  # file, folder, run or URL
    is_pinned: bool = False
    is_watched: bool = False  # a folder in which versions appear, or a URL


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """How it is done."""

    session: SessionSettings = field(default_factory=SessionSettings)
    devices: tuple[str, ...] = ("cpu",)  # cpu, cuda:0, MIG-…: one worker each
    fallback: bool | None = None  # a CPU worker behind the others; None: where one of them is no CPU
    fallback_session: SessionSettings = field(default_factory=SessionSettings)
    load: LoadSettings = field(default_factory=LoadSettings)
    admission: Admission = field(default_factory=Admission)
    budget_bytes: int | None = None  # of all models in a worker
    load_on_request: bool = False  # may a request load what is not in memory?
    poll_s: float = 2.0  # how often new versions are looked for
    hang_s: float | None = None
    command: tuple[str, ...] = spawning.WORKER

    def places(self) -> tuple[Place, ...]:
        """The workers to have; the fallback's last."""
        has_fallback = self.fallback if self.fallback is not None else any(one != "cpu" for one in self.devices)
        primaries = [self._place(device, device, self.session, has_fallback) for device in self.devices]
        behind = self._place("fallback", "cpu", self.fallback_session, False)
        return (*primaries, replace(behind, is_fallback=True)) if has_fallback else tuple(primaries)

    def _place(self, name: str, device: str, session: SessionSettings, has_fallback: bool) -> Place:
        hang_s = self.hang_s or (_FALLBACK_HANG_S if has_fallback else HANG_S)
        return Place(
            name=name,
            device=device,
            session=replace(session, device=spawning.device_inside(device)),
            load=replace(self.load, hang_s=hang_s),
            command=self.command,
            hang_s=hang_s,
            window=2 * self.load.max_batch + 2,
        )

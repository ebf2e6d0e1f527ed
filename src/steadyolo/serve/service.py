"""What an HTTP front asks of the part that serves, and how it is refused. No library's names appear here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from steadyolo.errors import SteadyError, Transient, UserError
from steadyolo.serve.served_model import ServedModel

State = Literal["waiting", "loading", "warming", "ready", "failed", "unloaded"]


class Overloaded(Transient):
    """There is no room, or no time, for one more; nothing was begun. `retry_after_s` says when to come again."""

    def __init__(self, message: str, *, retry_after_s: float, is_client: bool = False) -> None:
        super().__init__(message, remedy=f"send it again in {retry_after_s:.1f} s")
        self.retry_after_s = retry_after_s
        self.is_client = is_client  # this client asks too much (429), or all together do (503)


class NotReady(Overloaded):
    """The model is known, and is not warm now."""


class Lost(Overloaded):
    """The worker died or was late with this request; asking again is safe."""


class NoSuchModel(UserError):
    """No model, or no version of it, has that name here."""


class BadImage(UserError):
    """The bytes are no image, or none that is taken here."""


class DeviceFault(SteadyError):
    """The device failed, hung, ran out of memory or answers garbage; another one has to do the work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectOptions:
    """As Ultralytics' `predict` names them."""

    conf: float = 0.25
    iou: float = 0.7
    max_det: int = 300
    classes: tuple[int, ...] | None = None
    agnostic_nms: bool = False

    def __post_init__(self) -> None:
        for name, value in (("conf", self.conf), ("iou", self.iou)):
            if not 0 <= value <= 1:
                raise UserError(f"{name} is {value}", remedy=f"give {name} as a number from 0 to 1")
        if self.max_det < 1:
            raise UserError(f"max_det is {self.max_det}", remedy="allow at least 1 object")


@dataclass(frozen=True, slots=True)
class Tensor:
    """Numbers in FP32, little-endian, row by row.

    Bytes, and no array: the process that listens only hands them on, and starts faster than NumPy is imported.
    """

    shape: tuple[int, ...]
    data: bytes | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was found on one image. `objects` are those of Ultralytics' `Results.summary()`, in pixels of the image."""

    objects: list[dict[str, Any]]
    height_px: int
    width_px: int
    model: str
    version: str
    session: str  # label of what computed it
    seconds: Mapping[str, float]  # by stage: queue, decode, prepare, run, finish


@dataclass(frozen=True, slots=True, kw_only=True)
class Inferred:
    """The graph's own outputs by name, and the version that gave them."""

    outputs: Mapping[str, Tensor]
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """One model as it stands. `why` explains a state that is not `ready`."""

    name: str
    state: State
    model: ServedModel | None  # the version that answers now
    versions: tuple[str, ...]
    session: str | None
    is_required: bool  # ready needs it
    num_bytes: int  # resident
    why: str = ""
    warm_s: float | None = None  # a picture's time through all stages, as warming up measured it


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """`is_ready` only when every required model is warm, none failed, and the service is not draining."""

    is_ready: bool
    models: tuple[ModelStatus, ...]
    is_draining: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Counters and gauges of now, for `/metrics`."""

    num_queued: int
    num_running: int
    num_restarts: int
    num_fallbacks: int  # answers that the fallback gave
    resident_bytes: Mapping[str, int]  # by worker
    more: Mapping[str, float] = field(default_factory=dict)


class Service(Protocol):
    """Thread of the event loop only. Every call answers or raises one of this module's errors within its time."""

    async def start(self) -> None:
        """Begin to load; returns at once. `readiness` tells when it is done."""

    async def detect(
        self, name: str, image: bytes, options: DetectOptions, *, version: str | None = None, timeout_s: float
    ) -> Answer:
        """What the model finds on an encoded image.

        Raises: NoSuchModel, BadImage, NotReady, Overloaded, Lost.
        """

    async def infer(self, name: str, images: Tensor, *, version: str | None = None, timeout_s: float) -> Inferred:
        """The graph's own outputs for a tensor as `Session.run` takes it.

        Raises: NoSuchModel, UserError for a shape or numbers that are not taken, NotReady, Overloaded, Lost.
        """

    def readiness(self) -> Readiness:
        """As it is now."""

    def figures(self) -> Figures:
        """As they are now."""

    async def load(self, name: str) -> None:
        """Load and warm a model that was unloaded; returns when it is ready. Raises: NoSuchModel, UserError."""

    async def unload(self, name: str) -> None:
        """Give a model's memory back. Raises: NoSuchModel."""

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new, answer what was accepted, end the workers."""

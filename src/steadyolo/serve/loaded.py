"""One engine in a worker: opened, warmed through the real path, and checked against its golden image."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from steadyolo.errors import DataLoss, SteadyError
from steadyolo.serve import pictures
from steadyolo.serve.golden import Golden
from steadyolo.serve.place import LoadSettings
from steadyolo.serve.served_model import ServedModel, open_served
from steadyolo.serve.service import DetectOptions
from steadyolo.serve.session import Output, Session, SessionSettings
from steadyolo.serve.shapes import shapes_of
from steadyolo.serve.verifying import Verifying
from steadyolo.serve.warmup import Warmth, paying_buckets, warm

_EVERY_BOX = DetectOptions(conf=1e-6)  # thousands of candidates: as bad as a picture gets

Shape = tuple[int, int]
Run = Callable[[Callable[[], Any]], Any]  # calls it in the thread that runs sessions, in each hand, or on the spot
Through = Callable[[Shape], None]  # the golden picture through the way of every request, in that shape


class Engine(Protocol):
    """Pixels to results; `steadyolo.serve.engine.Engine` is one. Only its session is used by one thread at a time."""

    session: Session
    shapes_px: tuple[Shape, ...]

    def decode(self, data: bytes) -> NDArray[np.uint8]: ...

    def prepare(self, picture: NDArray[np.uint8], shape_px: Shape | None = None) -> Any: ...

    def finish(self, outputs: Sequence[Output], prepared: Any, options: DetectOptions) -> Any: ...


class OpenEngine(Protocol):
    """Makes an engine: handed in by `cli`."""

    def __call__(self, model: ServedModel, settings: SessionSettings) -> Engine: ...


@dataclass(slots=True)
class Loaded:
    """An engine that answers, and what was measured of it."""

    key: str
    model: ServedModel
    engine: Engine
    settings: LoadSettings
    golden: Golden
    jpeg: bytes  # the golden picture as most requests are
    answered: list[Output] = field(default_factory=list)  # to it, in the full shape, when it was opened
    warmth: dict[int, Warmth] = field(default_factory=dict)  # by batch size, in the full shape
    buckets: tuple[int, ...] = (1,)
    num_bytes: int = 0  # that the process grew by
    load_s: float = 0.0
    checked_s: float = field(default_factory=time.monotonic)

    def usual_s(self, num_images: int) -> float:
        """What a batch takes when warm; 0 where that is not known."""
        one = self.warmth.get(num_images) or self.warmth.get(1)
        return one.usual_s if one else 0.0

    def warm_up(self, through: Through, in_hands: Run) -> None:
        """Each shape the whole way until times are flat; before, `in_hands` with every box there could be."""
        for shape_px in self.engine.shapes_px:
            outputs, self.answered = self.answered or self._answers(shape_px), []
            in_hands(partial(self._at_worst, shape_px, outputs))
            warmth = warm(partial(through, shape_px), limit_s=self.settings.warm_limit_s, clock=time.perf_counter)
            self.warmth.setdefault(1, warmth)  # of the full shape, which comes first and takes longest

    def warm_up_batch(self, num_images: int, run: Run) -> None:
        """As many images at once in each shape; `buckets` tells whether that pays."""
        for shape_px in self.engine.shapes_px:
            warmth = warm(
                lambda shape_px=shape_px: self._pass(run, num_images, shape_px, DetectOptions()),  # type: ignore[misc]
                limit_s=self.settings.warm_limit_s,
                clock=time.perf_counter,
            )
            self.warmth.setdefault(num_images, warmth)
        self.buckets = paying_buckets({size: warmth.usual_s for size, warmth in self.warmth.items()})

    def is_due(self, now_s: float) -> bool:
        """Has it been unchecked for too long?"""
        return now_s - self.checked_s >= self.settings.check_s

    def refresh(self, run: Run) -> None:
        """Once through the whole path with the golden image. Raises: DeviceFault for a wrong answer."""
        if self.settings.check:
            run(lambda: self.golden.check(self.engine.session))
        if self.settings.warm_up:
            for shape_px in self.engine.shapes_px[1:]:  # the first was just run
                self._pass(run, 1, shape_px, DetectOptions())
        self.checked_s = time.monotonic()

    def _answers(self, shape_px: Shape) -> list[Output]:
        """Slow at first; nobody else has this session yet."""
        return self.engine.session.run(self.engine.prepare(self.engine.decode(self.jpeg), shape_px).image[None])

    def _at_worst(self, shape_px: Shape, outputs: list[Output]) -> None:
        prepared = self.engine.prepare(self.engine.decode(self.jpeg), shape_px)
        self.engine.finish(outputs, prepared, _EVERY_BOX).summary()

    def _pass(self, run: Run, num_images: int, shape_px: Shape, options: DetectOptions) -> None:
        prepared = self.engine.prepare(self.engine.decode(self.jpeg), shape_px)
        images = np.stack([prepared.image] * num_images)
        outputs = run(lambda: self.engine.session.run(images))
        self.engine.finish([output[:1] for output in outputs], prepared, options).summary()

    def told(self) -> dict[str, Any]:
        """What the front hears of it."""
        has_run = self.settings.warm_up or self.settings.check
        label = self.engine.session.label if has_run else ""  # a session that has not run would compile, to know it
        return {
            "session": label if self.settings.warm_up else "not warmed",
            "runtime": label.partition(" ")[0],
            "num_bytes": self.num_bytes,
            "load_s": self.load_s,
            "buckets": self.buckets,
            "usual_s": {size: warmth.usual_s for size, warmth in self.warmth.items()},
            "num_warm_runs": {size: len(warmth.seconds) for size, warmth in self.warmth.items()},
            "is_flat": all(warmth.is_flat for warmth in self.warmth.values()),
        }


def load(
    key: str,
    folder: Path,
    version: str,
    session: SessionSettings,
    settings: LoadSettings,
    open_engine: OpenEngine,
) -> Loaded:
    """Opened, and right about its golden image; not warm yet.

    Raises: UserError, DataLoss for a model that is not whole, or not of that version any more; DeviceFault for one
    that answers wrongly.
    """
    model = open_served(folder, verify=False)
    if model.version != version:
        raise DataLoss(
            f"{folder} was replaced: it holds version {model.version}, and {version} is wanted",
            remedy="load the model again to serve what is there now",
        )
    verifying = Verifying(model) if settings.verify else None
    golden = Golden(model)
    jpeg = pictures.as_jpeg(_as_taken(golden.picture[..., ::-1]))
    try:
        engine = open_engine(model, session)
    except SteadyError:
        if verifying is not None:
            verifying.finish()  # what was changed is no fault of the runtime that cannot read it
        raise
    if settings.tight_shapes:
        engine.shapes_px = shapes_of(model)
    if verifying is not None:
        verifying.finish()  # before its answer is judged: a changed file is told as what it is
    loaded = Loaded(key=key, model=model, engine=engine, settings=settings, golden=golden, jpeg=jpeg)
    if settings.check:
        answered = golden.check(engine.session)
        loaded.answered = answered if settings.warm_up else []
    return loaded


def _as_taken(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Half as large again and wider than high, as from a camera: it has to be scaled, and grey to be put around it."""
    height, width = picture.shape[:2]
    rows, columns = np.arange(height * 9 // 8) * 2 // 3, np.arange(width * 3 // 2) * 2 // 3
    return np.ascontiguousarray(picture[rows][:, columns])

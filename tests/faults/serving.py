"""A service with real worker processes, for tests that break it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from steadyolo.serve.place import LoadSettings
from steadyolo.serve.served_model import ServedModel, open_served
from steadyolo.serve.service import Answer, DetectOptions
from steadyolo.serve.session import SessionSettings
from steadyolo.serve.settings import ServedName, ServeSettings
from steadyolo.serve.warm_service import WarmService

PRIMARY, FALLBACK = "openvino", "onnxruntime"
START_LIMIT_S = 60.0
SWAP_LIMIT_S = 60.0  # a trial gets a tenth of what others get, and other tests want all cores


@dataclass
class Faults:
    """Commands to workers of `steadyolo.testing.faulty_worker`."""

    folder: Path

    def begin(self, fault: str, runtime: str = PRIMARY, text: str = "") -> None:
        partial = self.folder / "partial"
        partial.write_text(text)
        partial.rename(self.folder / f"{fault}-{runtime}")

    def end(self, fault: str, runtime: str = PRIMARY) -> None:
        (self.folder / f"{fault}-{runtime}").unlink()

    @property
    def happened(self) -> list[str]:
        path = self.folder / "happened"
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []

    def settings(self, **changes: Any) -> ServeSettings:
        command = (sys.executable, "-m", "steadyolo.testing.faulty_worker", str(self.folder))
        usual = ServeSettings(
            session=SessionSettings(runtime=PRIMARY, num_threads=1),
            fallback_session=SessionSettings(runtime=FALLBACK, num_threads=1),
            command=command,
            poll_s=0.1,
        )
        return replace(usual, **changes)


def load_settings(**changes: Any) -> LoadSettings:
    return LoadSettings(**{"warm_limit_s": 1.0, **changes})


@asynccontextmanager
async def serving(
    models: dict[str, ServedModel | Path], settings: ServeSettings, *, waits: bool = True, watched: Sequence[str] = ()
) -> AsyncIterator[WarmService]:
    """A service of these models, ready, and drained in the end."""
    names = [
        ServedName(
            name=name, source=str(model.folder if isinstance(model, ServedModel) else model), is_watched=name in watched
        )
        for name, model in models.items()
    ]
    service = WarmService(names, settings, find=lambda name: open_served(Path(name), verify=False))
    await service.start()
    try:
        if waits:
            await ready(service)
        yield service
    finally:
        await service.drain(0.0)


async def ready(service: WarmService) -> None:
    def is_over() -> bool:
        states = [(model.state, model.why) for model in service.readiness().models]
        assert not any(state == "failed" for state, _ in states), states
        return service.readiness().is_ready

    await until(is_over, START_LIMIT_S, lambda: str(service.readiness()))


async def until(is_so: Callable[[], bool], limit_s: float, why: Callable[[], str] = lambda: "") -> float:
    """Seconds until something is so."""
    begun_s = time.monotonic()
    while not is_so():
        assert time.monotonic() - begun_s < limit_s, f"not within {limit_s} s: {why()}"
        await asyncio.sleep(0.005)
    return time.monotonic() - begun_s


def picture(seed: int = 0, *, is_black: bool = False) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (120, 160, 3), np.uint8)
    if is_black:
        pixels = np.zeros((160, 160, 3), np.uint8)  # no grey around it
    return cv2.imencode(".png", pixels)[1].tobytes()


@dataclass
class Load:
    """Clients that ask one picture after the other, and what became of it."""

    answers: list[tuple[float, float, Answer]] = field(default_factory=list)  # when, after how long
    errors: list[tuple[float, float, Exception]] = field(default_factory=list)

    async def one(self, ask: Callable[[], Awaitable[Answer]]) -> None:
        begun_s = time.monotonic()
        try:
            answer = await ask()
        except Exception as error:  # noqa: BLE001  # to be looked at
            self.errors.append((begun_s, time.monotonic() - begun_s, error))
        else:
            self.answers.append((begun_s, time.monotonic() - begun_s, answer))


@asynccontextmanager
async def clients(
    service: WarmService, name: str, *, num: int, timeout_s: float = 5.0, pause_s: float = 0.0
) -> AsyncIterator[Load]:
    """`num` clients ask `name`, for as long as the block takes; then all are answered."""
    load, is_over, image = Load(), False, picture()

    async def client() -> None:
        while not is_over:
            await load.one(lambda: service.detect(name, image, DetectOptions(), timeout_s=timeout_s))
            await asyncio.sleep(pause_s)

    tasks = [asyncio.create_task(client()) for _ in range(num)]
    try:
        yield load
    finally:
        is_over = True
        await asyncio.gather(*tasks)

"""The application under a server that is not ours: started when warm, drained at the end."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from steadyolo.adapters.http.app import App
from steadyolo.adapters.http.limits import HttpLimits
from tests.unit.adapters.http.plain_service import PlainService


async def lived(service: PlainService, *, until_ready: Any = None) -> list[dict[str, Any]]:
    """What the application says from its start to its end."""
    messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    said: list[dict[str, Any]] = []
    app = App(service, HttpLimits())

    async def send(message: Any) -> None:
        said.append(message)

    living = asyncio.create_task(app({"type": "lifespan"}, messages.get, send))
    await messages.put({"type": "lifespan.startup"})
    await asyncio.sleep(0.05)
    if until_ready is not None:
        assert not said, "it said that it had started"
        until_ready()
        await asyncio.sleep(0.05)
    await messages.put({"type": "lifespan.shutdown"})
    await asyncio.wait_for(living, 5)
    return said


def test_it_starts_when_models_are_warm_and_ends_drained() -> None:
    async def live() -> None:
        service = PlainService()
        ready = service.status
        service.status = replace(ready, state="warming")
        said = await lived(service, until_ready=lambda: setattr(service, "status", ready))
        assert [one["type"] for one in said] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        assert service.is_draining

    asyncio.run(live())


def test_it_does_not_start_where_no_model_can_be_loaded() -> None:
    async def live() -> None:
        service = PlainService()
        service.status = replace(service.status, state="failed", why="its digest differs")
        said = await lived(service)
        assert said == [{"type": "lifespan.startup.failed", "message": "small: its digest differs"}]

    asyncio.run(live())

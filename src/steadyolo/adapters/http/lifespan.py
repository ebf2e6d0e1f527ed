"""The life of an application under a server that is not ours: it starts when its models are warm, and ends drained."""

from __future__ import annotations

import asyncio

from starlette.types import Receive, Send

from steadyolo.adapters.http.health import Health
from steadyolo.errors import SteadyError
from steadyolo.serve.service import Service

_POLL_S = 0.01
_DRAIN_S = 30.0


async def live(service: Service, health: Health, receive: Receive, send: Send) -> None:
    """Answers ASGI's `lifespan` messages."""
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            try:
                await service.start()
            except SteadyError as error:
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
            health.is_front_ready = True
            while not health.is_ready:
                models = service.readiness().models
                if all(one.state == "failed" for one in models):
                    why = "; ".join(f"{one.name}: {one.why}" for one in models)
                    await send({"type": "lifespan.startup.failed", "message": why})
                    return
                await asyncio.sleep(_POLL_S)
            await send({"type": "lifespan.startup.complete"})
        else:
            health.is_draining = True
            await service.drain(_DRAIN_S)
            await send({"type": "lifespan.shutdown.complete"})
            return

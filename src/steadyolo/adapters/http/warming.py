"""The first request through a process costs milliseconds more than the next: it is made here, before ready is said."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steadyolo.adapters.http.app import App

_NUM_TIMES = 3
_LIMIT_S = 5.0
_PICTURE = "golden.png"  # as every served model has one


async def warm_front(app: App, host: str, port: int) -> None:
    """Requests with each warm model's golden picture: over a connection as far as bodies go, then to the endpoint.

    What they come to does not matter, and nothing of it is counted.
    """
    for status in app.service.readiness().models:
        picture = status.model.folder / _PICTURE if status.model is not None and status.state == "ready" else None
        if picture is None or not picture.is_file():
            continue
        try:
            async with asyncio.timeout(_LIMIT_S):
                await _over_a_connection(host, port, picture)
                for _ in range(_NUM_TIMES):
                    await _to_the_endpoint(app, status.name, picture.read_bytes())
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            continue
    app.metrics.forget()


async def _over_a_connection(host: str, port: int, picture: Path) -> None:
    """To a path that anybody may ask, with a method that it does not answer: read and refused as others are."""
    body = picture.read_bytes()
    head = f"POST /healthz HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    reader, writer = await asyncio.open_connection(host, port)
    try:
        for _ in range(_NUM_TIMES):
            writer.write(head + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
    finally:
        writer.close()


async def _to_the_endpoint(app: App, name: str, body: bytes) -> None:
    scope = {
        "type": "http",
        "method": "POST",
        "path": f"/v1/models/{name}/detect",
        "path_params": {"name": name},
        "query_string": b"conf=0.25",
        "headers": [(b"content-type", b"image/png"), (b"content-length", str(len(body)).encode())],
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        pass

    await app.without_asking(scope, receive, send)

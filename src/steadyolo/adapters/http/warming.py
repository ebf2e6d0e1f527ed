"""The first request through a process costs milliseconds more than the next: it is made here, before ready is said."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steadyolo.adapters.http.app import App

_BODY_BYTES = 100_000
_LIMIT_S = 5.0
_PICTURE = "golden.png"  # as every served model has one


async def warm_connections(host: str, port: int, *, num_times: int = 1) -> None:
    """Bodies to a path that anybody may ask, with a method that it does not answer: read and refused as others are."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # an address to reach, not to listen on
    head = f"POST /healthz HTTP/1.1\r\nHost: {host}\r\nContent-Length: {_BODY_BYTES}\r\n\r\n".encode()
    try:
        async with asyncio.timeout(_LIMIT_S):
            reader, writer = await asyncio.open_connection(host, port)
            for _ in range(num_times):
                writer.write(head + bytes(_BODY_BYTES))
                answer = await reader.readuntil(b"\r\n\r\n")
                length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
            writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return  # it was worth a try


async def warm_endpoints(app: App) -> None:
    """A detection with each warm model's golden picture. What it comes to does not matter, and nothing is counted."""
    for status in app.service.readiness().models:
        picture = status.model.folder / _PICTURE if status.model is not None and status.state == "ready" else None
        if picture is not None and picture.is_file():
            await _detect(app, status.name, picture.read_bytes())
    app.metrics.forget()


async def _detect(app: App, name: str, body: bytes) -> None:
    scope = {
        "type": "http",
        "method": "POST",
        "path": f"/v1/models/{name}/detect",
        "path_params": {"name": name},
        "query_string": b"conf=0.25",
        "headers": [(b"content-type", b"image/png"), (b"content-length", str(len(body)).encode())],
    }

    messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()  # nothing follows: this client never leaves
    messages.put_nowait({"type": "http.request", "body": body, "more_body": False})

    async def send(message: Any) -> None:
        pass

    await app.without_asking(scope, messages.get, send)

"""A front on a free port of this machine, in a thread of its own, and requests to it."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from uvicorn import Config, Server

from steadyolo.adapters.http.app import App
from steadyolo.adapters.http.connections import connections_within
from steadyolo.adapters.http.limits import HttpLimits, Tokens
from steadyolo.adapters.http.listening import listen
from tests.unit.adapters.http.plain_service import PlainService


@dataclass
class Reply:
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Running:
    """A front that answers."""

    port: int
    app: App
    service: PlainService
    loop: asyncio.AbstractEventLoop
    server: Server

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        """One request on a connection of its own; `_` in a header's name stands for `-`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            return Reply(answer.status, {name.lower(): text for name, text in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def detect(self, body: bytes, query: str = "", content_type: str = "image/png") -> Reply:
        return self.ask("POST", f"/v1/models/small/detect{query}", body, content_type=content_type)

    def raw(self, timeout_s: float = 20.0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s)

    def connections(self) -> set[Any]:
        return self.server.server_state.connections

    def in_loop(self, do: Callable[[], Any]) -> Any:
        """What `do` returns, called in the front's thread."""

        async def called() -> Any:
            return do()

        return asyncio.run_coroutine_threadsafe(called(), self.loop).result(20)


@contextmanager
def running(
    limits: HttpLimits | None = None, tokens: Tokens | None = None, *, may_control: bool = True
) -> Iterator[Running]:
    """A front for `PlainService`, ended with the block."""
    limits = limits or HttpLimits()
    listener = listen("127.0.0.1", 0)
    started = threading.Event()
    made: list[Any] = []

    async def serve() -> None:
        service = PlainService()
        app = App(service, limits, tokens, may_control=may_control)
        app.health.is_front_ready = True
        config = Config(
            app, http=connections_within(limits), ws="none", lifespan="off", log_config=None, proxy_headers=False
        )
        server = Server(config)
        made.extend([app, service, asyncio.get_running_loop(), server])
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.001)
        started.set()
        await task

    port = listener.getsockname()[1]
    thread = threading.Thread(target=asyncio.run, args=[serve()])
    thread.start()
    try:
        while not started.wait(0.05):
            assert thread.is_alive(), "the front did not start"
        yield Running(port, *made)
    finally:
        if made:
            made[-1].should_exit = made[-1].force_exit = True
        thread.join(20)


def picture(width: int = 48, height: int = 32, form: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    """An encoded picture of noise."""
    bands = {"RGB": 3, "L": 1, "CMYK": 4, "RGBA": 4}[mode]
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, bands), np.uint8).squeeze()
    out = io.BytesIO()
    Image.fromarray(pixels, mode).save(out, form, **options)
    return out.getvalue()


def wait_until(done: Callable[[], Any], timeout_s: float = 10.0) -> None:
    ends_at = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < ends_at, "it did not come to pass"
        time.sleep(0.02)

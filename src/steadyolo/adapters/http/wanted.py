"""Work for a client goes on for as long as the client waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

T = TypeVar("T")


async def while_wanted(request: Request, work: Coroutine[Any, Any, T], *, within_s: float) -> T:
    """What the work comes to. Its request's body was read whole.

    Raises: ClientDisconnect as soon as the client has left, TimeoutError when the time is over; the work is cancelled.
    """
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((doing, leaving), timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise ClientDisconnect if leaving.done() else TimeoutError
    finally:
        doing.cancel()
        leaving.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

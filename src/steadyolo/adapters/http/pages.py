"""The page that shows what a model sees, and the one that shows what can be asked. Neither loads anything else."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable
from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

_INLINE = re.compile(rb"<(style|script)>(.*?)</\1>", re.DOTALL)


def page(name: str) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that shows a file of this package, allowed to run its own script and to ask this server."""

    async def shown(request: Request) -> Response:
        data, policy = _read(name)
        headers = {"content-security-policy": policy, "referrer-policy": "no-referrer", "x-frame-options": "DENY"}
        return Response(data, media_type="text/html", headers=headers)

    return shown


@cache
def _read(name: str) -> tuple[bytes, str]:
    data = files("steadyolo.adapters.http").joinpath(name).read_bytes()
    digests: dict[str, list[str]] = {"style": [], "script": []}
    for kind, text in _INLINE.findall(data):
        digests[kind.decode()].append(f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'")
    sources = "; ".join(f"{kind}-src {' '.join(found)}" for kind, found in digests.items() if found)
    policy = f"default-src 'none'; {sources}; img-src blob: data:; connect-src 'self'; base-uri 'none'"
    return data, f"{policy}; form-action 'none'; frame-ancestors 'none'"

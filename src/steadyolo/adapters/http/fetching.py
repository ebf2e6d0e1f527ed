"""Pictures from other hosts, where the host was allowed by name. Nothing is fetched otherwise."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import BoundedSemaphore
from typing import Any

from steadyolo.adapters.http.limits import HttpLimits
from steadyolo.adapters.http.problems import Refused
from steadyolo.serve.service import Overloaded

_MAX_URL_LENGTH = 2_048
_CONNECT_S, _READ_S = 3.0, 8.0
_NUM_AT_ONCE = 4
_PIECE_BYTES = 64 << 10


class Fetching:
    """Reads `{"url": …}` and gets what is there, without following where it points to."""

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self._threads = ThreadPoolExecutor(_NUM_AT_ONCE, thread_name_prefix="fetch")  # made when they are needed
        self._turns = BoundedSemaphore(_NUM_AT_ONCE)

    async def picture(self, body: bytes) -> bytes:
        """Raises: Refused where the host is not allowed, is a private address, or gives no picture in time."""
        if not self._limits.url_hosts:
            raise Refused(
                403,
                "url_not_allowed",
                "this server fetches no URL",
                remedy="send the picture itself, or start the server with --allow-url-host HOST",
            )
        url = _url(body)
        if not self._turns.acquire(blocking=False):
            raise Overloaded("too many pictures are being fetched at this moment", retry_after_s=1.0)
        getting = self._threads.submit(self._get, url)
        getting.add_done_callback(lambda _: self._turns.release())  # a name may take longer to find than we wait
        try:
            return await asyncio.wait_for(asyncio.wrap_future(getting), _CONNECT_S + _READ_S)
        except TimeoutError:
            raise _failed(504, "it did not answer in time") from None

    def _get(self, url: str) -> bytes:
        import http.client
        import time
        from urllib.parse import urlsplit

        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError:
            raise _bad_url("it cannot be read") from None
        if parts.scheme not in {"http", "https"} or not host or parts.username is not None:
            raise _bad_url("it is not http://HOST/… or https://HOST/…")
        if host not in self._limits.url_hosts:
            raise Refused(
                403,
                "url_not_allowed",
                f"this server does not fetch from {host[:100]}",
                remedy="send the picture itself, or start the server with --allow-url-host HOST",
            )
        connection: http.client.HTTPConnection | None = None
        ends_at = time.monotonic() + _CONNECT_S + _READ_S
        try:
            connection = self._connect(parts.scheme, host, port)
            path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
            connection.request("GET", path, headers={"Accept": "image/*", "User-Agent": "steadyolo"})
            response = connection.getresponse()
            if response.status != 200:
                raise _failed(424, f"it answered {response.status}; only 200 is taken, and no redirect is followed")
            return self._read(response, ends_at)
        except (OSError, http.client.HTTPException, ValueError) as error:
            late = isinstance(error, TimeoutError)
            raise _failed(504 if late else 424, "it did not answer in time" if late else f"{error}"[:200]) from None
        finally:
            if connection is not None:
                connection.close()

    def _connect(self, scheme: str, host: str, port: int | None) -> Any:
        """To an address that was looked at first: asking for the name again could give another one."""
        import http.client
        import socket
        import ssl
        from ipaddress import ip_address

        port = port or (443 if scheme == "https" else 80)
        found = {str(one[4][0]) for one in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
        for address in sorted(found):
            if not ip_address(address).is_global and address not in self._limits.url_hosts:
                raise Refused(
                    403,
                    "url_not_allowed",
                    f"{host[:100]} is at a private address",
                    remedy="send the picture itself, or start the server with --allow-url-host ADDRESS too",
                )
        plain = _reached(sorted(found), port)
        plain.settimeout(_READ_S)
        connection = http.client.HTTPConnection(host, port, timeout=_READ_S)
        connection.sock = (
            ssl.create_default_context().wrap_socket(plain, server_hostname=host) if scheme == "https" else plain
        )
        return connection

    def _read(self, response: Any, ends_at: float) -> bytes:
        import time

        data = bytearray()
        while piece := response.read1(_PIECE_BYTES):
            data += piece
            if len(data) > self._limits.body_bytes:
                raise Refused(
                    413,
                    "too_large",
                    f"the picture is larger than {self._limits.body_bytes} bytes",
                    remedy="send a smaller picture",
                )
            if time.monotonic() > ends_at:
                raise TimeoutError
        return bytes(data)


def _reached(addresses: list[str], port: int) -> Any:
    import socket

    for address in addresses[:-1]:
        with suppress(OSError):
            return socket.create_connection((address, port), timeout=_CONNECT_S)
    return socket.create_connection((addresses[-1], port), timeout=_CONNECT_S)


def _url(body: bytes) -> str:
    try:
        asked = json.loads(body) if len(body) < 2 * _MAX_URL_LENGTH else None
    except (ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict) or set(asked) != {"url"} or not isinstance(asked["url"], str):
        raise Refused(400, "bad_url", 'the body is not {"url": "…"}', remedy='send {"url": "https://HOST/PICTURE"}')
    if len(asked["url"]) > _MAX_URL_LENGTH or not asked["url"].isascii() or not asked["url"].isprintable():
        raise _bad_url(f"it is longer than {_MAX_URL_LENGTH} characters, or not plain ASCII")
    return str(asked["url"])


def _bad_url(why: str) -> Refused:
    return Refused(400, "bad_url", f"the URL cannot be used: {why}", remedy='send {"url": "https://HOST/PICTURE"}')


def _failed(status: int, why: str) -> Refused:
    return Refused(status, "url_failed", f"the picture could not be fetched: {why}", remedy="send the picture itself")

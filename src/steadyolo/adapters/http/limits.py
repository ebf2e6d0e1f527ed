"""What one client, and all together, may take: tokens, requests in a time, bytes of bodies that wait."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from steadyolo.adapters.http.problems import Refused, retry_after
from steadyolo.errors import UserError
from steadyolo.serve.service import Overloaded

_MIN_TOKEN_LENGTH = 16
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750
_COMMENT = re.compile(r"(^|\s)#.*")
_MAX_CLIENTS = 10_000  # whose requests are counted; who was not seen for longest is forgotten first


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """Limits of the front. Those of pictures (sides, pixels) are the worker's, which reads them."""

    body_bytes: int = 64 << 20  # of one request, unpacked
    bodies_bytes: int = 512 << 20  # of all requests together
    num_pictures: int = 16  # of one request
    head_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    stall_timeout_s: float = 20.0  # of a client that does not read its answer
    answer_timeout_s: float = 10.0
    load_timeout_s: float = 300.0
    num_connections: int = 1_000
    requests_per_s: float | None = None  # of one client
    num_burst: int = 20
    url_hosts: frozenset[str] = field(default_factory=frozenset)  # where pictures may be fetched from
    proxies: tuple[str, ...] = ()  # addresses or networks whose X-Forwarded-For is believed
    are_metrics_open: bool = False  # to who has no token


class Tokens:
    """Bearer tokens that are known, as digests only. None at all: everybody may come in."""

    def __init__(self, tokens: list[str]) -> None:
        for token in tokens:
            if len(token) < _MIN_TOKEN_LENGTH:
                raise UserError(
                    f"a token has {len(token)} characters",
                    remedy=f"use at least {_MIN_TOKEN_LENGTH}: python -c 'import secrets; print(secrets.token_hex())'",
                )
            if not _TOKEN.fullmatch(token):
                raise UserError(
                    "a token has a character that no header may carry, such as a space, # or a letter with an accent",
                    remedy="use letters, digits and -._~+/ alone, as secrets.token_hex() of Python does",
                )
        self._digests = [_digest(token) for token in tokens]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def holder(self, authorization: str | None) -> str | None:
        """A name for who sent this header, or None where its token is not known. Takes as long for each token."""
        scheme, _, token = (authorization or "").partition(" ")
        digest = _digest(token.strip())
        known = [hmac.compare_digest(digest, one) for one in self._digests]
        return digest.hex()[:16] if any(known) and scheme.lower() == "bearer" else None


def read_tokens(file: Path | None, variable: str | None) -> Tokens:
    """Tokens of a file, one a line, `#` begins a comment; and of an environment variable, separated by commas.

    Raises: UserError for a file that cannot be read, that others may read, or that holds none.
    """
    tokens = [one.strip() for one in (variable or "").split(",") if one.strip()]
    if file is not None:
        try:
            mode, text = file.stat().st_mode, file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"the tokens in {file} cannot be read: {error}", remedy="name a text file") from None
        if mode & 0o007:
            raise UserError(f"everybody on this machine may read {file}", remedy=f"change it: chmod 600 {file}")
        lines = [_COMMENT.sub("", line).strip() for line in text.splitlines()]
        found = [line for line in lines if line]
        if not found:
            raise UserError(f"{file} holds no token", remedy="write one token a line, or leave --token-file out")
        tokens += found
    return Tokens(tokens)


def network_of(address: str) -> str:
    """Whom an address stands for: itself, or the /64 of IPv6, of which one client has every address."""
    if ":" not in address:
        return address
    from ipaddress import IPv6Address, ip_network

    full = IPv6Address(address.partition("%")[0])
    return str(full.ipv4_mapped or ip_network((full, 64), strict=False))


class Rates:
    """A bucket of requests for each client, filled at a steady rate. Raises where one is empty."""

    def __init__(self, per_s: float | None, num_burst: int, now: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._num_burst = num_burst
        self._now = now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, and when that was

    def take(self, client: str) -> None:
        """Raises: Refused (429) where the client asked too often."""
        if self._per_s is None:
            return
        now = self._now()
        left, at = self._buckets.pop(client, (float(self._num_burst), now))
        left = min(float(self._num_burst), left + (now - at) * self._per_s)
        self._buckets[client] = (left - 1 if left >= 1 else left, now)
        while len(self._buckets) > _MAX_CLIENTS:
            self._buckets.popitem(last=False)
        if left < 1:
            wait_s = (1 - left) / self._per_s
            raise Refused(
                429,
                "too_many_requests",
                f"more than {self._per_s:g} requests a second, {self._num_burst} at once, came from this client",
                remedy=f"send it again in {wait_s:.1f} s",
                headers=retry_after(wait_s),
            )


class Room:
    """Bytes of all bodies that are held at this moment."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self.held_bytes = 0

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """What is called takes so many bytes more, until the end of the block. It raises Overloaded where none are."""
        taken_bytes = 0

        def take(num_bytes: int) -> None:
            nonlocal taken_bytes
            if self.held_bytes + num_bytes > self._most_bytes:
                raise Overloaded("too many bodies are being read at this moment", retry_after_s=1.0)
            taken_bytes += num_bytes
            self.held_bytes += num_bytes

        try:
            yield take
        finally:
            self.held_bytes -= taken_bytes


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()

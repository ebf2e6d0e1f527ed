"""Asks a metadata service what it has to say, by the protocol of its provider.

Every request goes straight to the service: it is on the machine's own link, where a proxy of the environment cannot be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPConnection, HTTPException, IncompleteRead
from typing import Protocol
from urllib.parse import urlsplit

from steadyolo.adapters.notices import answers
from steadyolo.adapters.notices.detection import Service
from steadyolo.adapters.notices.notice import Notice

TIMEOUT_S = 2.0
TOKEN_TTL_S = 21600  # the longest that AWS and Alibaba grant
_MOST_BYTES = 1 << 18
_REFUSED = {401, 403}  # a token that has ended, or that a restarted service does not know

FAILURES = (OSError, HTTPException, ValueError)  # what asking may raise


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. Any status is an answer."""

    status: int
    body: str

    def found(self) -> str | None:
        """The body, None where there is none (404). Raises: OSError for any other status than these."""
        if self.status == 404:
            return None
        if self.status != 200:
            raise OSError(f"HTTP status {self.status}")
        return self.body


def ask(address: str, path: str, *, method: str = "GET", headers: Mapping[str, str]) -> Answer:
    """One request and its whole answer. Raises: OSError, HTTPException."""
    parts = urlsplit(address)
    with closing(HTTPConnection(parts.hostname or "", parts.port or 80, timeout=TIMEOUT_S)) as connection:
        connection.request(method, path, headers=dict(headers))
        response = connection.getresponse()
        body = response.read(_MOST_BYTES)
        if response.length:  # cut off, or longer than anything these services say
            raise IncompleteRead(body, response.length)
        return Answer(response.status, body.decode(errors="replace"))


class Asking(Protocol):
    """A provider's protocol. Built without a request."""

    def notices(self, seen_at: datetime) -> Iterator[Notice]:
        """Every notice that stands now, each as soon as it is known. Raises: one of FAILURES."""


def asking(service: Service, *, monotonic: Callable[[], float]) -> Asking:
    """How to ask `service`."""
    match service.provider:
        case "aws":
            return _Aws(TokenSession(service.address, "X-aws-ec2-metadata-token", monotonic=monotonic))
        case "google":
            return _Google(service.address)
        case "azure":
            return _Azure(service.address)
        case "alibaba":
            return _Alibaba(TokenSession(service.address, "X-aliyun-ecs-metadata-token", monotonic=monotonic))


class TokenSession:
    """Requests with a token, which is renewed at half its life and when it is refused.

    A service that has no tokens (Alibaba's, before its hardened mode) is asked without one.
    """

    def __init__(self, address: str, header: str, *, monotonic: Callable[[], float]) -> None:
        self._address = address
        self._header = header
        self._monotonic = monotonic
        self._token: dict[str, str] = {}
        self._renew_at_s = float("-inf")

    def get(self, path: str) -> str | None:
        """The body at `path`, None where there is none. Raises: OSError, HTTPException."""
        if self._monotonic() >= self._renew_at_s:
            self._renew()
        answer = ask(self._address, path, headers=self._token)
        if answer.status in _REFUSED:
            self._renew()
            answer = ask(self._address, path, headers=self._token)
        return answer.found()

    def _renew(self) -> None:
        wanted = {f"{self._header}-ttl-seconds": str(TOKEN_TTL_S)}
        answer = ask(self._address, "/latest/api/token", method="PUT", headers=wanted)
        token = "" if answer.status == 405 else (answer.found() or "").strip()  # 404 or 405: it has none
        if not (token.isascii() and token.isprintable()):
            raise answers.Garbled("the token is no text")
        self._token = {self._header: token} if token else {}
        self._renew_at_s = self._monotonic() + TOKEN_TTL_S / 2


class _Aws:
    def __init__(self, session: TokenSession) -> None:
        self._session = session

    def notices(self, seen_at: datetime) -> Iterator[Notice]:
        yield from answers.aws_action(self._session.get("/latest/meta-data/spot/instance-action"), seen_at=seen_at)
        yield from answers.aws_rebalance(self._session.get("/latest/meta-data/events/recommendations/rebalance"))


class _Google:
    def __init__(self, address: str) -> None:
        self._address = address

    def notices(self, seen_at: datetime) -> Iterator[Notice]:
        yield from answers.google_preempted(self._get("preempted"), seen_at=seen_at)
        yield from answers.google_maintenance(self._get("maintenance-event"), seen_at=seen_at)

    def _get(self, name: str) -> str | None:
        path = f"/computeMetadata/v1/instance/{name}"
        return ask(self._address, path, headers={"Metadata-Flavor": "Google"}).found()


class _Azure:
    def __init__(self, address: str) -> None:
        self._address = address
        self._machine: str | None = None  # the name that events know this machine by

    def notices(self, seen_at: datetime) -> Iterator[Notice]:
        if self._machine is None:
            self._machine = answers.azure_name(self._get("instance/compute/name?api-version=2021-02-01&format=text"))
        events = self._get("scheduledevents?api-version=2020-07-01")
        yield from answers.azure_events(events, machine=self._machine, seen_at=seen_at)

    def _get(self, path: str) -> str | None:
        return ask(self._address, f"/metadata/{path}", headers={"Metadata": "true"}).found()


class _Alibaba:
    def __init__(self, session: TokenSession) -> None:
        self._session = session

    def notices(self, seen_at: datetime) -> Iterator[Notice]:
        yield from answers.alibaba_termination(self._session.get("/latest/meta-data/instance/spot/termination-time"))

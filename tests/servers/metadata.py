"""Metadata services of the four clouds, on loopback, as strict as the real ones about who may ask and how."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN_HEADERS = {"aws": "X-aws-ec2-metadata-token", "alibaba": "X-aliyun-ecs-metadata-token"}
QUIET = {  # what each answers while nothing is going to happen; everything else is a 404
    "aws": {},
    "google": {
        "/computeMetadata/v1/instance/preempted": "FALSE",
        "/computeMetadata/v1/instance/maintenance-event": "NONE",
    },
    "azure": {
        "/metadata/instance/compute/name": "vm-7",
        "/metadata/scheduledevents": '{"DocumentIncarnation": 1, "Events": []}',
    },
    "alibaba": {},
}
AZURE_VERSIONS = {"/metadata/instance/compute/name": "2021-02-01", "/metadata/scheduledevents": "2020-07-01"}


@dataclass(frozen=True)
class Request:
    method: str
    path: str  # without its query
    status: int | None  # None: it got no whole answer


class MetadataServer:
    """Listens from `start` to `stop`, on the same port each time. Change `bodies` and `fault` while it runs.

    `fault` is None, `hang` (answers once `release` is called), `drop` (closes without a word), `cut` (half a body), a
    status, or a body that answers everything.
    """

    def __init__(self, provider: str, *, hardened: bool = True, no_tokens: int | None = None) -> None:
        self.provider = provider
        self.bodies: dict[str, str] = dict(QUIET[provider])
        self.fault: str | int | bytes | None = None
        self.requests: list[Request] = []
        self.hardened = hardened
        self.no_tokens = no_tokens  # the status of who asks for one
        self.num_waiting = 0
        self._released = threading.Event()
        self._tokens: dict[str, float] = {}
        self._num_tokens = 0
        self._port = 0
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def told(self) -> str:
        """What STEADYOLO_METADATA has to say, to be sent here."""
        return f"{self.provider}={self.address}"

    def start(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), self._handler())
        self._server.daemon_threads, self._server.block_on_close = True, False
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._released.set()
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join(10)
            self._server = None

    def release(self) -> None:
        """Let what hangs be answered."""
        self.fault = None
        self._released.set()

    def expire_tokens(self) -> None:
        self._tokens.clear()

    def count(self, *, method: str | None = None, path: str | None = None, status: int | None = None) -> int:
        wanted = {"method": method, "path": path, "status": status}
        return sum(
            all(value is None or getattr(request, name) == value for name, value in wanted.items())
            for request in list(self.requests)
        )

    # -- the protocols: a status and a body -------------------------------------------------------------------------

    def answer(self, method: str, target: str, headers: dict[str, str]) -> tuple[int, str]:
        if not target.startswith("/") or "host" not in headers:
            return 400, "asked as a proxy is asked"
        refused = 400 if self.provider == "azure" else 403
        if "x-forwarded-for" in headers:
            return refused, "forwarded"
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        refusal = getattr(self, f"_{self.provider}")(method, parts.path, query, headers)
        if refusal is not None:
            return refusal
        if method != "GET":
            return 405, "only GET"
        body = self.bodies.get(parts.path)
        return (404, "<html>404 - Not Found</html>") if body is None else (200, body)

    def _aws(self, method, path, query, headers):
        return self._with_token(method, path, headers, refused=401)

    def _alibaba(self, method, path, query, headers):
        if self.no_tokens and method == "PUT":
            return self.no_tokens, "no such thing"
        if not self.hardened and TOKEN_HEADERS["alibaba"].lower() not in headers and method == "GET":
            return None
        return self._with_token(method, path, headers, refused=403)

    def _with_token(self, method, path, headers, *, refused):
        header = TOKEN_HEADERS[self.provider].lower()
        if method == "PUT" and path == "/latest/api/token":
            ttl = headers.get(f"{header}-ttl-seconds", "")
            if not ttl.isdecimal() or not 1 <= int(ttl) <= 21600:
                return 400, "no time to live"
            self._num_tokens += 1
            token = f"token-{self._num_tokens}=="
            self._tokens[token] = time.monotonic() + int(ttl)
            return 200, token
        if self._tokens.get(headers.get(header, ""), 0.0) < time.monotonic():
            return refused, "no valid token"
        return None

    def _google(self, method, path, query, headers):
        return None if headers.get("metadata-flavor") == "Google" else (403, "no Metadata-Flavor")

    def _azure(self, method, path, query, headers):
        if headers.get("metadata") != "true":
            return 400, "no Metadata header"
        if path in AZURE_VERSIONS and query.get("api-version") != AZURE_VERSIONS[path]:
            return 400, "no api-version"
        if path == "/metadata/instance/compute/name" and query.get("format") != "text":
            return 400, "json is only for objects"
        return None

    # -- HTTP -------------------------------------------------------------------------------------------------------

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer._serve(self)

            do_PUT = do_GET

            def log_message(self, *arguments: object) -> None:
                pass

        return Handler

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        path = urlsplit(handler.path).path
        fault = self.fault
        if fault == "hang":
            self.num_waiting += 1
            self._released.wait(30)
        status, text = self.answer(handler.command, handler.path, {k.lower(): v for k, v in handler.headers.items()})
        body = text.encode()
        match fault:
            case int():
                status, body = fault, b"<html>an error page</html>"
            case bytes():
                status, body = 200, fault
        whole = fault not in {"drop", "cut"}
        self.requests.append(Request(handler.command, path, status if whole else None))
        if fault == "drop":
            return
        try:
            handler.send_response(status)
            handler.send_header("Content-Length", str(len(body) if whole else len(body) + 1))
            handler.end_headers()
            handler.wfile.write(body)
        except OSError:  # it did not wait
            pass


@contextmanager
def metadata_server(provider: str, **options: Any) -> Iterator[MetadataServer]:
    """A service that is up, until it is left."""
    server = MetadataServer(provider, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop()

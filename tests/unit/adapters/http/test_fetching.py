"""Pictures are fetched from hosts that were allowed by name, at addresses that were looked at; from nowhere else."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from steadyolo.adapters.http import fetching
from steadyolo.adapters.http.limits import HttpLimits
from tests.unit.adapters.http.front import Reply, Running, picture, running

HOST = "127.0.0.1"


class Elsewhere(BaseHTTPRequestHandler):
    """Another server: a picture, a redirect, too much, too slowly, nothing."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "/a.png")
            self.end_headers()
        elif self.path in ("/a.png", "/large", "/slow"):
            self.send_response(200)
            self.end_headers()
            data = picture() if self.path == "/a.png" else bytes(200_000)
            if self.path == "/slow":
                for _ in range(100):
                    self.wfile.write(b"a")
                    self.wfile.flush()
                    time.sleep(0.1)
            self.wfile.write(data)
        else:
            self.send_error(404)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[int]:
    server = ThreadingHTTPServer((HOST, 0), Elsewhere)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def front() -> Iterator[Running]:
    with running(HttpLimits(url_hosts=frozenset({HOST, "localhost"}), body_bytes=100_000)) as one:
        yield one


def fetch(front: Running, url: Any) -> Reply:
    return front.detect(json.dumps({"url": url}).encode(), content_type="application/json")


def test_a_picture_of_an_allowed_host_is_answered(front: Running, elsewhere: int) -> None:
    reply = fetch(front, f"http://{HOST}:{elsewhere}/a.png?x=1")
    assert reply.status == 424, "the path with its query is asked for"
    reply = fetch(front, f"http://{HOST}:{elsewhere}/a.png")
    assert (reply.status, reply.json["image"]["width"]) == (200, 48)
    assert fetch(front, f"http://LOCALHOST:{elsewhere}/a.png").status in (200, 424)  # 424: ::1 is first, and not open


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [("/away", 424, "url_failed"), ("/none", 424, "url_failed"), ("/large", 413, "too_large")],
)
def test_what_is_no_picture_there_is_refused(front: Running, elsewhere: int, path: str, status: int, code: str) -> None:
    Elsewhere.asked.clear()
    reply = fetch(front, f"http://{HOST}:{elsewhere}{path}")
    assert (reply.status, reply.json["error"]["code"]) == (status, code)
    assert Elsewhere.asked == [path], "it went where it was sent"


def test_who_is_slow_is_left(front: Running, elsewhere: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_CONNECT_S", 0.2)
    monkeypatch.setattr(fetching, "_READ_S", 0.3)
    reply = fetch(front, f"http://{HOST}:{elsewhere}/slow")
    assert (reply.status, reply.json["error"]["code"]) == (504, "url_failed")


def test_nobody_there_is_told(front: Running) -> None:
    with socket.create_server((HOST, 0)) as one:
        port = one.getsockname()[1]
    assert fetch(front, f"http://{HOST}:{port}/a.png").status == 424


@pytest.mark.parametrize(
    "url", ["http://example.org/a.png", "http://127.0.0.2/", "http://[::1]/", "http://169.254.169.254/latest/meta-data"]
)
def test_other_hosts_are_refused(front: Running, url: str) -> None:
    reply = fetch(front, url)
    assert (reply.status, reply.json["error"]["code"]) == (403, "url_not_allowed")


@pytest.mark.parametrize(
    "url",
    [None, 1, "", "a.png", "file:///etc/passwd", "ftp://127.0.0.1/a", f"http://{HOST}:99999/", "http://", "http://é/",
     f"http://user:word@{HOST}/a", f"http://{HOST}/\r\nX: y", f"http://{HOST}/" + "a" * 3_000, "http://[::1"],
)  # fmt: skip
def test_what_is_no_url_is_refused(front: Running, url: Any) -> None:
    reply = fetch(front, url)
    assert (reply.status, reply.json["error"]["code"]) == (400, "bad_url")


def test_a_name_that_leads_to_a_private_address_is_refused(elsewhere: int) -> None:
    with running(HttpLimits(url_hosts=frozenset({"localhost"}))) as front:
        Elsewhere.asked.clear()
        reply = fetch(front, f"http://localhost:{elsewhere}/a.png")
        assert (reply.status, reply.json["error"]["code"]) == (403, "url_not_allowed")
        assert "private address" in reply.json["error"]["message"]
        assert not Elsewhere.asked


def test_nothing_is_fetched_where_nothing_is_allowed(elsewhere: int) -> None:
    with running() as front:
        Elsewhere.asked.clear()
        assert fetch(front, f"http://{HOST}:{elsewhere}/a.png").status == 403
        assert not Elsewhere.asked

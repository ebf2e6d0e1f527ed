"""Connections: how many there may be, who has to leave, and whose work is dropped."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from steadyolo.adapters.http.limits import HttpLimits
from tests.unit.adapters.http.front import Running, picture, running, wait_until

NUM_CONNECTIONS = 10


@pytest.fixture
def front() -> Iterator[Running]:
    with running(HttpLimits(num_connections=NUM_CONNECTIONS, head_timeout_s=60)) as one:
        yield one


def detection() -> bytes:
    data = picture()
    head = "POST /v1/models/small/detect HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: "
    return f"{head}{len(data)}\r\n\r\n".encode() + data


def test_who_asks_nothing_makes_room(front: Running) -> None:
    with ExitStack() as open_ones:
        clients = [open_ones.enter_context(front.raw(timeout_s=3)) for _ in range(5 * NUM_CONNECTIONS)]
        assert [one.recv(100) for one in clients[:5]] == [b""] * 5, "the oldest were not let go"
        assert front.ask("GET", "/healthz").status == 200
        assert front.detect(picture()).status == 200
        wait_until(lambda: front.in_loop(lambda: len(front.connections())) <= NUM_CONNECTIONS)


def test_nobody_who_is_computed_for_makes_room(front: Running) -> None:
    front.in_loop(front.service.gate.clear)
    with ExitStack() as open_ones:
        clients = [open_ones.enter_context(front.raw()) for _ in range(NUM_CONNECTIONS)]
        for one in clients:
            one.sendall(detection())
        wait_until(lambda: front.service.num_running == NUM_CONNECTIONS)
        with front.raw() as more:
            assert more.recv(1 << 16).startswith(b"HTTP/1.1 503"), "it was let in"
        front.in_loop(front.service.gate.set)
        assert all(one.recv(1 << 16).startswith(b"HTTP/1.1 200") for one in clients)


@pytest.mark.parametrize("way", ["close", "half close", "several files", "tensor"])
def test_who_leaves_is_not_computed_for(front: Running, way: str) -> None:
    front.in_loop(front.service.gate.clear)
    with front.raw() as client:
        if way == "several files":
            part = b'--b\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n\r\n' + picture() + b"\r\n"
            body, kind, path = part * 2 + b"--b--\r\n", "multipart/form-data; boundary=b", "/v1/models/small/detect"
        else:
            tensor = {"name": "images", "shape": [1, 3, 64, 64], "datatype": "FP32", "data": [0.5] * 12_288}
            body, kind, path = json.dumps({"inputs": [tensor]}).encode(), "application/json", "/v2/models/small/infer"
        head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(detection() if "close" in way else head.encode() + body)
        wait_until(lambda: front.service.num_running > 0)
        if way == "half close":
            client.shutdown(socket.SHUT_WR)
            wait_until(lambda: front.service.num_running == 0)
    wait_until(lambda: front.service.num_running == 0)
    wait_until(lambda: b'code="499"' in front.ask("GET", "/metrics").body)
    front.in_loop(front.service.gate.set)
    assert front.detect(picture()).status == 200


def test_what_is_no_http_is_not_told_in_place_of_an_earlier_answer(front: Running) -> None:
    front.in_loop(front.service.gate.clear)
    with front.raw() as client:
        client.sendall(detection() + b"\x00\x01 nonsense\r\n\r\n")
        assert client.recv(1 << 16) == b""
    with front.raw() as client:
        client.sendall(b"POST /v1/models/small/detect HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n")
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 400"), "the request itself is wrong, and is told so"
    front.in_loop(front.service.gate.set)


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"GET /healthz HTTP/1.1\r\nA: " + b"a" * 31_000 + b"\r\n\r\n", b"200"),
        (b"GET /healthz HTTP/1.1\r\nA: " + b"a" * 33_000 + b"\r\n\r\n", b"431"),
        (b"GET /healthz?" + b"a" * 33_000 + b" HTTP/1.1\r\n\r\n", b"431"),
        (b"GET /healthz HTTP/1.1\r\n" + b"a:\r\n" * 8_000 + b"\r\n", b"431"),
        (b"POST /healthz HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nabcde", b"400"),
    ],
    ids=["31 kB", "33 kB", "a long path", "many headers", "another protocol"],
)
def test_heads_have_a_bound_however_fast_they_come(front: Running, sent: bytes, told: bytes) -> None:
    with front.raw() as client:
        client.sendall(sent)
        assert client.recv(1 << 16)[9:12] == told


def test_nothing_is_read_after_a_request_that_would_change_the_protocol(front: Running) -> None:
    with front.raw() as client:
        client.sendall(
            b"GET /healthz HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\nGET /v1/models HTTP/1.1\r\n\r\n"
        )
        answer = b""
        while piece := client.recv(1 << 16):
            answer += piece
    assert answer.count(b"HTTP/1.1 200") == 1 and b"connection: close" in answer


@pytest.mark.parametrize("name", ["Content-Type: image/png", "Content-Encoding: identity"])
def test_a_header_that_could_mean_two_things_is_refused(front: Running, name: str) -> None:
    with front.raw() as client:
        client.sendall(detection().replace(b"Host: a\r\n", f"{name}\r\n{name}\r\n".encode()))
        answer = b""
        while not answer.endswith(b"}}"):
            answer += client.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 400") and b'"header_twice"' in answer


def test_connections_are_as_many_as_files_may_be_open() -> None:
    program = (
        "import resource, sys\n"
        "from steadyolo.adapters.http.listening import num_connections\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, int(sys.argv[1])))\n"
        "print(num_connections(1000), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )

    def told(hard: int) -> list[int]:
        done = subprocess.run([sys.executable, "-c", program, str(hard)], capture_output=True, text=True, check=True)
        return [int(word) for word in done.stdout.split()]

    assert told(64) == [16, 64]
    assert told(200) == [152, 200]
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2_000 or told(2_000) == [1_000, 1_048]


def test_one_request_after_the_other_on_one_connection(front: Running) -> None:
    with front.raw() as client:
        client.sendall(detection() * 5)
        data, ends_at = b"", time.monotonic() + 10
        while data.count(b"HTTP/1.1 200") < 5 and time.monotonic() < ends_at:
            data += client.recv(1 << 16)
    assert data.count(b"HTTP/1.1 200") == 5

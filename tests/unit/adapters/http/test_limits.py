"""What one client may take: of time, of bytes, of turns; and who may come in at all."""

from __future__ import annotations

import gzip
import http.client
import json
import logging
import socket
import threading
import time
import zlib
from pathlib import Path

import pytest

from steadyolo.adapters.http.limits import HttpLimits, Rates, Room, Tokens, network_of, read_tokens
from steadyolo.adapters.http.problems import Refused
from steadyolo.errors import UserError
from steadyolo.serve.service import Overloaded
from tests.unit.adapters.http.front import Running, picture, running, wait_until

TOKEN = "correct-horse-battery"
SMALL = HttpLimits(
    body_bytes=100_000,
    bodies_bytes=150_000,
    head_timeout_s=0.4,
    body_timeout_s=0.4,
    stall_timeout_s=0.4,
    num_connections=20,
)


def post(num_bytes: int | str) -> bytes:
    """The head of a request for a detection."""
    length = f"Content-Length: {num_bytes}" if isinstance(num_bytes, int) else num_bytes
    return f"POST /v1/models/small/detect HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\n{length}\r\n\r\n".encode()


def read_all(client: socket.socket) -> bytes:
    """What comes until the server closes; a connection that it resets has ended too."""
    data = b""
    try:
        while piece := client.recv(1 << 16):
            data += piece
    except ConnectionResetError:
        pass
    return data


def read_error(client: socket.socket) -> bytes:
    """One answer with an error, of a connection that stays open."""
    data = b""
    while not data.endswith(b"}}"):
        piece = client.recv(1 << 16)
        assert piece, data
        data += piece
    return data


@pytest.fixture(scope="module")
def small() -> Running:
    with running(SMALL) as front:
        yield front


# --- tokens ---


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer wrong-wrong-wrong-wrong", TOKEN, f"Basic {TOKEN}", "Bearer \xff\xfe"]
)
def test_only_who_has_a_token_comes_in(authorization: str | None, caplog: pytest.LogCaptureFixture) -> None:
    with running(tokens=Tokens([TOKEN])) as front, caplog.at_level(logging.DEBUG):
        headers = {} if authorization is None else {"authorization": authorization}
        for method, path in (("GET", "/v1/models"), ("GET", "/metrics"), ("POST", "/v2/models/small/infer")):
            reply = front.ask(method, path, **headers)
            assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
        for path in ("/healthz", "/readyz", "/v2/health/ready", "/", "/docs", "/openapi.json"):
            assert front.ask("GET", path, **headers).status == 200, path
        right = front.ask("GET", "/v1/models", authorization=f"Bearer {TOKEN}")
        assert right.status == 200
        assert front.ask("GET", "/openapi.json").json["security"] == [{"token": []}]
    assert TOKEN not in caplog.text


def test_tokens_come_from_a_file_that_others_cannot_read(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# ours\n{TOKEN}  # line 3\n\n")
    file.chmod(0o600)
    tokens = read_tokens(file, "another-token-1234, third-token-5678")
    holders = [tokens.holder(f"Bearer {one}") for one in (TOKEN, "another-token-1234", "third-token-5678")]
    assert all(holders) and len(set(holders)) == 3
    assert TOKEN not in repr(vars(tokens))
    file.chmod(0o644)
    with pytest.raises(UserError, match="everybody"):
        read_tokens(file, None)


def test_no_token_short_tokens_and_missing_files_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("# nothing\n")
    empty.chmod(0o600)
    with pytest.raises(UserError, match="holds no token"):
        read_tokens(empty, None)
    with pytest.raises(UserError, match="cannot be read"):
        read_tokens(tmp_path / "none", None)
    with pytest.raises(UserError, match="has 5 characters"):
        read_tokens(None, "short")


@pytest.mark.parametrize("token", ["a-tokén-of-some-length", "a token of some length", "half-of-it#is-lost-otherwise"])
def test_tokens_that_no_header_carries_are_refused(token: str, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(token, encoding="utf-8")
    file.chmod(0o600)
    with pytest.raises(UserError, match="character that no header may carry"):
        read_tokens(file, None)


def test_figures_are_open_where_that_was_asked_for() -> None:
    with running(HttpLimits(are_metrics_open=True), Tokens([TOKEN])) as front:
        assert front.ask("GET", "/metrics").status == 200
        assert front.ask("GET", "/v1/models").status == 401


# --- turns ---


def test_a_client_that_asks_too_often_waits(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    rates = Rates(2.0, 3, now=lambda: now)
    for _ in range(3):
        rates.take("a")
    with pytest.raises(Refused) as raised:
        rates.take("a")
    assert (raised.value.status, raised.value.headers["retry-after"]) == (429, "1")
    rates.take("b")
    now = 0.5
    rates.take("a")
    with pytest.raises(Refused):
        rates.take("a")


def test_clients_that_are_counted_stay_few() -> None:
    rates = Rates(1.0, 1)
    for number in range(30_000):
        rates.take(str(number))
    assert len(rates._buckets) == 10_000


@pytest.mark.parametrize(
    ("one", "other", "is_one"),
    [
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8::1", "2001:db8::ffff:1:2:3", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("", "", True),
    ],
)
def test_an_address_stands_for_one_client(one: str, other: str, is_one: bool) -> None:
    assert (network_of(one) == network_of(other)) is is_one


def test_each_token_has_its_own_turns() -> None:
    tokens = Tokens([TOKEN, "another-token-1234"])
    with running(HttpLimits(requests_per_s=0.001, num_burst=2), tokens) as front:

        def ask(token: str) -> int:
            return front.ask(
                "POST", "/v1/models/small/detect", picture(), content_type="image/png", authorization=f"Bearer {token}"
            ).status

        assert [ask(TOKEN) for _ in range(3)] == [200, 200, 429]
        assert [ask("another-token-1234") for _ in range(3)] == [200, 200, 429]
        assert [ask("a-wrong-token-12345") for _ in range(3)] == [401, 401, 429]
        assert front.ask("GET", "/v1/models", authorization=f"Bearer {TOKEN}").status == 200, "only models' time counts"


# --- bytes ---


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(small: Running) -> None:
    with small.raw() as client:
        client.sendall(post(100_001))
        answer = read_error(client)
    assert answer.startswith(b"HTTP/1.1 413") and b'"too_large"' in answer


def test_a_body_that_does_not_say_is_refused_when_it_is_too_large(small: Running) -> None:
    with small.raw() as client:
        client.sendall(post("Transfer-Encoding: chunked"))
        for _ in range(3):
            client.sendall(b"C350\r\n" + bytes(50_000) + b"\r\n")
        assert read_error(client).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress], ids=["gzip", "deflate"])
def test_a_small_body_that_unpacks_to_a_large_one_is_refused(small: Running, pack) -> None:
    bomb = pack(bytes(80_000_000))
    assert len(bomb) < 100_000
    encoding = "gzip" if pack is gzip.compress else "deflate"
    reply = small.ask("POST", "/v1/models/small/detect", bomb, content_type="image/png", content_encoding=encoding)
    assert (reply.status, reply.json["error"]["code"]) == (413, "too_large")


def test_bodies_have_a_bound_together() -> None:
    room = Room(100)
    with room.share() as take:
        take(60)
        with room.share() as other, pytest.raises(Overloaded):
            other(60)
        assert room.held_bytes == 60
    assert room.held_bytes == 0


def test_bodies_that_wait_leave_no_room_for_others() -> None:
    with running(HttpLimits(body_bytes=100_000, bodies_bytes=150_000)) as front:
        head = post(100_000)
        with front.raw() as one:
            one.sendall(head + bytes(99_999))
            wait_until(lambda: front.ask("GET", "/metrics").body.count(b"steadyolo_body_bytes 99999.0"))
            reply = front.detect(bytes(60_000))
            assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        wait_until(lambda: front.ask("GET", "/metrics").body.count(b"steadyolo_body_bytes 0.0"))
        assert front.detect(bytes(60_000)).status == 400


def test_an_endless_head_is_refused(small: Running) -> None:
    with small.raw() as client:
        client.sendall(b"GET / HTTP/1.1\r\nA: ")
        try:
            for _ in range(10):
                client.sendall(b"a" * 10_000)
                time.sleep(0.01)
        except OSError:
            pass
        answer = read_all(client)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431")
    assert small.ask("GET", "/healthz").status == 200


# --- time ---


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        (b"", b""),  # nothing is owed to who asks nothing
        (b"\r\n", b"HTTP/1.1 408"),
        (b"GET / HT", b"HTTP/1.1 408"),
        (b"POST /v1/models/small/detect HTTP/1.1\r\nHost: a\r\n", b"HTTP/1.1 408"),
        (post(9) + b"abc", b"HTTP/1.1 408"),
    ],
    ids=["silence", "an empty line", "half a line", "half a head", "half a body"],
)
def test_who_is_slow_is_let_go(small: Running, sent: bytes, answered: bytes) -> None:
    started = time.monotonic()
    with small.raw() as client:
        client.sendall(sent)
        answer = read_all(client)
    assert answer.startswith(answered) and bool(answer) == bool(answered)
    if answer:
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["remedy"]
    assert 0.3 < time.monotonic() - started < 5


def test_a_drop_now_and_then_does_not_keep_a_connection(small: Running) -> None:
    with small.raw() as client:
        started = time.monotonic()
        client.sendall(b"GET / HTTP/1.1\r\n")
        with pytest.raises(OSError):
            while time.monotonic() - started < 5:
                client.sendall(b"A: b\r\n")
                time.sleep(0.05)
        assert time.monotonic() - started < 3


def test_who_does_not_read_the_answer_is_let_go(small: Running) -> None:
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.connect(("127.0.0.1", small.port))
        client.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 1_000)

        def waiting_bytes() -> int:
            return sum(one.transport.get_write_buffer_size() for one in small.connections())

        wait_until(lambda: small.in_loop(waiting_bytes) > 0)
        wait_until(lambda: small.in_loop(lambda: len(small.connections())) == 0)


def test_an_answer_that_does_not_come_ends_with_the_time_limit() -> None:
    with running(HttpLimits(answer_timeout_s=0.1)) as front:
        front.in_loop(front.service.gate.clear)
        reply = front.detect(picture())
        assert (reply.status, reply.json["error"]["code"]) == (504, "late")
        wait_until(lambda: front.service.num_running == 0)  # its end is a turn of the loop later


def test_what_is_no_http_is_told_so(small: Running) -> None:
    with small.raw() as client:
        client.sendall(b"\x16\x03\x01\x02\x00 hello\r\n\r\n")
        answer = read_all(client)
    assert answer.startswith(b"HTTP/1.1 400") and b'"bad_http"' in answer


def test_a_client_that_leaves_is_no_fault(small: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        with small.raw() as client:
            client.sendall(post(9) + b"abc")
            time.sleep(0.05)
        wait_until(lambda: b'code="499"' in small.ask("GET", "/metrics").body)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_many_at_once_are_all_answered(small: Running) -> None:
    statuses: list[int] = []

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", small.port, timeout=20)
        for _ in range(20):
            connection.request("POST", "/v1/models/small/detect", picture(), {"Content-Type": "image/png"})
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 160

"""Each fault of the proxy is what it says, seen by a client that reads the wire; without faults nothing changes."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from steadyolo.testing.fault_proxy import FaultProxy
from steadyolo.testing.network_faults import (
    SLOW_DOWN,
    Bandwidth,
    ErrorPage,
    Fault,
    Flipped,
    Latency,
    LostAnswer,
    Reset,
    Silence,
    Truncated,
    s3_error,
)
from tests.servers.seaweed import BUCKET, SeaweedServer

BODY = bytes(range(256)) * 512  # two pieces


@dataclass(frozen=True)
class Caller:
    """Speaks to the server through the proxy, with requests that are signed for the proxy's address."""

    server: SeaweedServer
    proxy: FaultProxy
    key: str

    def call(self, method: str, body: bytes | None = None, *, timeout_s: float = 10) -> tuple[int, bytes]:
        """Status and body of the answer, as they came over the wire."""
        client = self.server.client(endpoint=self.proxy.endpoint)
        operation = {"GET": "get_object", "PUT": "put_object", "HEAD": "head_object", "DELETE": "delete_object"}[method]
        url = urlsplit(client.generate_presigned_url(operation, Params={"Bucket": BUCKET, "Key": self.key}))
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.port, timeout=timeout_s)
        try:
            connection.request(method, f"{url.path}?{url.query}", body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def stored(self) -> bytes | None:
        """What the server has, asked without the proxy."""
        client = self.server.client()
        try:
            found: bytes = client.get_object(Bucket=BUCKET, Key=self.key)["Body"].read()
        except client.exceptions.NoSuchKey:
            return None
        return found


@pytest.fixture
def caller(seaweed: SeaweedServer, fault_proxy: FaultProxy, prefix: str) -> Iterator[Caller]:
    caller = Caller(seaweed, fault_proxy, f"{prefix}/some object=1+1")
    assert caller.call("PUT", BODY) == (200, b"")
    yield caller


def test_without_faults_nothing_changes(caller: Caller) -> None:
    assert caller.call("GET") == (200, BODY)
    assert caller.call("HEAD") == (200, b"")
    caller.call("DELETE")
    status, body = caller.call("GET")
    assert status == 404
    assert b"NoSuchKey" in body
    assert [request.method for request in caller.proxy.requests] == ["PUT", "GET", "HEAD", "DELETE", "GET"]
    assert all(caller.key in request.target for request in caller.proxy.requests)


def test_a_client_that_asks_before_it_sends_and_sends_in_chunks_is_served(caller: Caller) -> None:
    client = caller.server.client(endpoint=caller.proxy.endpoint)
    client.put_object(Bucket=BUCKET, Key=caller.key, Body=BODY[::-1], ChecksumAlgorithm="SHA256")  # Expect: 100
    assert client.get_object(Bucket=BUCKET, Key=caller.key)["Body"].read() == BODY[::-1]
    connection = http.client.HTTPConnection("127.0.0.1", caller.proxy.port, timeout=10)
    url = urlsplit(client.generate_presigned_url("put_object", Params={"Bucket": BUCKET, "Key": caller.key}))
    connection.request("PUT", f"{url.path}?{url.query}", iter([b"one", b"two"]), encode_chunked=True)
    assert connection.getresponse().status == 200
    connection.close()
    assert caller.stored() == b"onetwo"


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (SLOW_DOWN, (503, SLOW_DOWN.body)),
        (s3_error(429, "TooManyRequests"), (429, s3_error(429, "TooManyRequests").body)),
        (ErrorPage(), (200, ErrorPage().body)),
    ],
)
def test_answers_of_others(caller: Caller, fault: Fault, expected: tuple[int, bytes]) -> None:
    rule = caller.proxy.inject(fault, method="GET", key="some object", times=2)
    assert [caller.call("GET") for _ in range(3)] == [expected, expected, (200, BODY)]
    assert rule.num_hits == 2


def test_one_bit_is_flipped(caller: Caller) -> None:
    rule = caller.proxy.inject(Flipped(), times=1)
    _, body = caller.call("GET")
    assert sum((one ^ other).bit_count() for one, other in zip(body, BODY, strict=True)) == 1
    assert rule.num_hits == 1


def test_a_truncated_answer_ends_early(caller: Caller) -> None:
    rule = caller.proxy.inject(Truncated(), times=1)
    with pytest.raises(http.client.IncompleteRead) as cut:
        caller.call("GET")
    assert cut.value.partial == BODY[: len(BODY) // 2]
    assert rule.num_hits == 1


@pytest.mark.parametrize("is_midway", [False, True])
def test_a_reset_upload_changes_nothing(caller: Caller, is_midway: bool) -> None:
    rule = caller.proxy.inject(Reset(is_midway=is_midway), method="PUT", times=1)
    with pytest.raises(ConnectionError):
        caller.call("PUT", BODY[::-1])
    assert rule.num_hits == 1
    assert caller.stored() == BODY


def test_a_download_is_reset_midway(caller: Caller) -> None:
    rule = caller.proxy.inject(Reset(is_midway=True), times=1)
    with pytest.raises((ConnectionError, http.client.IncompleteRead)):
        caller.call("GET")
    assert rule.num_hits == 1


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        (LostAnswer(), TimeoutError),
        (LostAnswer(is_reset=True), ConnectionError),
    ],
)
def test_a_lost_answer_was_committed(caller: Caller, fault: Fault, raised: type[Exception]) -> None:
    rule = caller.proxy.inject(fault, method="PUT")
    with pytest.raises(raised):
        caller.call("PUT", b"new", timeout_s=1)
    assert rule.num_hits == 1
    assert caller.stored() == b"new"


def test_an_error_after_the_commit(caller: Caller) -> None:
    caller.proxy.inject(s3_error(500, "InternalError", is_committed=True), method="PUT", times=1)
    assert caller.call("PUT", b"new")[0] == 500
    assert caller.stored() == b"new"


def test_silence_lasts_until_it_is_cleared(caller: Caller) -> None:
    rule = caller.proxy.inject(Silence())
    for method in ("GET", "PUT"):
        with pytest.raises(TimeoutError):
            caller.call(method, b"new" if method == "PUT" else None, timeout_s=0.2)
    assert rule.num_hits == 2
    caller.proxy.clear()
    assert caller.call("GET") == (200, BODY)


def test_nobody_listens_while_it_is_down(caller: Caller) -> None:
    caller.proxy.go_down()
    with pytest.raises(ConnectionRefusedError):
        caller.call("GET")
    caller.proxy.come_up()
    assert caller.call("GET") == (200, BODY)


def test_connections_are_reset_when_it_goes_down(caller: Caller) -> None:
    rule = caller.proxy.inject(Silence())
    ended: list[BaseException] = []

    def wait_for_an_answer() -> None:
        try:
            caller.call("GET", timeout_s=30)
        except OSError as error:
            ended.append(error)

    thread = threading.Thread(target=wait_for_an_answer)
    thread.start()
    rule.wait()
    caller.proxy.go_down()
    thread.join(10)
    assert isinstance(ended[0], ConnectionError)


def test_a_slow_line_is_slow(caller: Caller) -> None:
    def took_s(method: str, body: bytes | None = None) -> float:
        start_s = time.monotonic()
        assert caller.call(method, body)[0] == 200
        return time.monotonic() - start_s

    late = caller.proxy.inject(Latency(0.3), method="GET", times=1)
    assert took_s("GET") >= 0.3
    assert late.num_hits == 1
    narrow = caller.proxy.inject(Bandwidth(len(BODY) / 0.4))
    assert took_s("GET") >= 0.4
    assert took_s("PUT", BODY) >= 0.4
    assert narrow.num_hits == 2
    caller.proxy.clear()


def test_a_rule_meets_only_its_requests(caller: Caller) -> None:
    others = [
        caller.proxy.inject(SLOW_DOWN, method="PUT"),
        caller.proxy.inject(SLOW_DOWN, key="another"),
        caller.proxy.inject(SLOW_DOWN, times=0),
    ]
    assert caller.call("GET") == (200, BODY)
    assert [rule.num_hits for rule in others] == [0, 0, 0]
    with pytest.raises(TimeoutError, match="happened 0 times"):
        others[0].wait(timeout_s=0.01)


def test_the_server_may_be_restarted_behind_it(own_seaweed: SeaweedServer) -> None:
    with FaultProxy(own_seaweed.port) as proxy:
        caller = Caller(own_seaweed, proxy, "kept")
        assert caller.call("PUT", BODY)[0] == 200
        own_seaweed.kill()
        with pytest.raises(ConnectionError):
            caller.call("GET")
        own_seaweed.restart()
        assert caller.call("GET") == (200, BODY)

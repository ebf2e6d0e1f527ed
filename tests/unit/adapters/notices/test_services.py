"""Each provider's protocol, spoken to a server that insists on it."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from steadyolo.adapters.notices.detection import Service
from steadyolo.adapters.notices.services import FAILURES, TOKEN_TTL_S, Asking, ask, asking
from tests.servers.metadata import MetadataServer, metadata_server

SEEN = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
PATHS = {
    "aws": "/latest/meta-data/spot/instance-action",
    "google": "/computeMetadata/v1/instance/preempted",
    "azure": "/metadata/scheduledevents",
    "alibaba": "/latest/meta-data/instance/spot/termination-time",
}
BODIES = {
    "aws": '{"action": "terminate", "time": "2026-03-01T12:02:00Z"}',
    "google": "TRUE",
    "azure": '{"Events": [{"EventId": "1", "EventType": "Preempt", "Resources": ["vm-7"], "NotBefore": ""}]}',
    "alibaba": "2026-03-01T12:05:00Z",
}


class Clock:
    """Stands still until told otherwise."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def of(server: MetadataServer, clock: Clock | None = None) -> Asking:
    return asking(Service(server.provider, server.address), monotonic=clock or time.monotonic)  # type: ignore[arg-type]


@pytest.mark.parametrize("provider", PATHS)
def test_nothing_and_then_a_notice(provider: str) -> None:
    with metadata_server(provider) as server:
        asked = of(server)
        assert list(asked.notices(SEEN)) == []
        server.bodies[PATHS[provider]] = BODIES[provider]
        (notice,) = asked.notices(SEEN)
        assert notice.provider == provider
        assert notice.kind in {"terminate", "preempt"}
        refused = [request for request in server.requests if request.status not in {200, 404}]
        assert not refused


@pytest.mark.parametrize("provider", PATHS)
def test_the_server_insists_on_the_protocol(provider: str) -> None:
    """The control of the tests here: what is asked without the protocol, or through a proxy, is refused."""
    with metadata_server(provider) as server:
        server.bodies[PATHS[provider]] = BODIES[provider]
        query = "?api-version=2020-07-01" if provider == "azure" else ""
        assert ask(server.address, PATHS[provider] + query, headers={}).status in {400, 401, 403}
        good = {"Metadata-Flavor": "Google", "Metadata": "true"}
        if provider in {"aws", "alibaba"}:
            header = {"aws": "X-aws-ec2-metadata-token", "alibaba": "X-aliyun-ecs-metadata-token"}[provider]
            wanted = {f"{header}-ttl-seconds": "60"}
            assert ask(server.address, "/latest/api/token", method="PUT", headers={}).status == 400
            good[header] = ask(server.address, "/latest/api/token", method="PUT", headers=wanted).body
        assert ask(server.address, PATHS[provider] + query, headers=good).body == BODIES[provider]
        forwarded = good | {"X-Forwarded-For": "10.0.0.1"}
        assert ask(server.address, PATHS[provider] + query, headers=forwarded).status in {400, 403}
        if provider == "azure":
            assert ask(server.address, PATHS[provider], headers=good).status == 400


@pytest.mark.parametrize("provider", ["aws", "alibaba"])
def test_a_token_is_kept_and_renewed_when_it_is_refused(provider: str) -> None:
    with metadata_server(provider) as server:
        asked = of(server)
        for _ in range(3):
            assert list(asked.notices(SEEN)) == []
        assert server.count(method="PUT") == 1
        server.expire_tokens()
        server.bodies[PATHS[provider]] = BODIES[provider]
        assert len(list(asked.notices(SEEN))) == 1
        assert server.count(method="PUT") == 2
        assert server.count(status=401) + server.count(status=403) == 1, "no token was refused, so this proves nothing"


@pytest.mark.parametrize("provider", ["aws", "alibaba"])
def test_a_token_is_renewed_before_it_ends(provider: str) -> None:
    clock = Clock()
    with metadata_server(provider) as server:
        asked = of(server, clock)
        list(asked.notices(SEEN))
        clock.seconds += TOKEN_TTL_S / 2 - 1
        list(asked.notices(SEEN))
        assert server.count(method="PUT") == 1
        clock.seconds += 1
        list(asked.notices(SEEN))
        assert server.count(method="PUT") == 2
        assert {request.status for request in server.requests} == {200, 404}


@pytest.mark.parametrize("no_tokens", [None, 404, 405])
def test_alibaba_before_its_hardened_mode(no_tokens: int | None) -> None:
    with metadata_server("alibaba", hardened=False, no_tokens=no_tokens) as server:
        server.bodies[PATHS["alibaba"]] = BODIES["alibaba"]
        asked = of(server)
        assert len(list(asked.notices(SEEN))) == len(list(asked.notices(SEEN))) == 1
        assert server.count(method="PUT") == 1


def test_a_recommendation_is_information() -> None:
    with metadata_server("aws") as server:
        path = "/latest/meta-data/events/recommendations/rebalance"
        server.bodies[path] = '{"noticeTime": "2026-03-01T11:58:00Z"}'
        (notice,) = of(server).notices(SEEN)
        assert (notice.kind, notice.deadline_at) == ("rebalance", None)


def test_google_tells_of_maintenance_that_ends_the_machine() -> None:
    with metadata_server("google") as server:
        server.bodies["/computeMetadata/v1/instance/maintenance-event"] = "TERMINATE_ON_HOST_MAINTENANCE"
        (notice,) = of(server).notices(SEEN)
        assert (notice.kind, notice.seconds_left(SEEN)) == ("terminate", 30.0)


def test_a_notice_is_known_before_the_next_question_fails() -> None:
    with metadata_server("aws") as server:
        server.bodies[PATHS["aws"]] = BODIES["aws"]
        server.bodies["/latest/meta-data/events/recommendations/rebalance"] = "<html>"
        asked = of(server).notices(SEEN)
        assert next(asked).kind == "terminate"
        with pytest.raises(FAILURES):
            next(asked)


def test_azure_without_a_name_is_no_silence() -> None:
    """Without its name no event would be this machine's: that has to be a failure, not an answer."""
    with metadata_server("azure") as server:
        name = server.bodies.pop("/metadata/instance/compute/name")
        server.bodies[PATHS["azure"]] = BODIES["azure"]
        asked = of(server)
        with pytest.raises(FAILURES):
            list(asked.notices(SEEN))
        server.bodies["/metadata/instance/compute/name"] = name
        assert len(list(asked.notices(SEEN))) == len(list(asked.notices(SEEN))) == 1
        assert server.count(path="/metadata/instance/compute/name") == 2


@pytest.mark.parametrize("provider", PATHS)
@pytest.mark.parametrize("fault", ["drop", "cut", 500, 301, 429, b"", b"<html>\n</html>", b"\xff" * 300_000])
def test_every_fault_is_one_of_the_failures(provider: str, fault: str | int | bytes) -> None:
    with metadata_server(provider) as server:
        server.bodies[PATHS[provider]] = BODIES[provider]
        server.fault = fault
        asked = of(server)
        try:
            assert list(asked.notices(SEEN)) == []
        except FAILURES:
            pass
        else:
            assert fault == b"" and provider in {"google", "alibaba"}, "only an empty answer may be none"
        assert server.requests
        server.fault = None
        assert len(list(asked.notices(SEEN))) == 1


@pytest.mark.parametrize("provider", PATHS)
def test_proxies_of_the_environment_are_not_asked(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with metadata_server(provider) as server, metadata_server(provider) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "https_proxy"):
            monkeypatch.setenv(name, proxy.address)
        monkeypatch.delenv("no_proxy", raising=False)
        server.bodies[PATHS[provider]] = BODIES[provider]
        assert len(list(of(server).notices(SEEN))) == 1
        assert proxy.requests == []


@pytest.mark.parametrize("provider", PATHS)
def test_a_question_costs_training_next_to_nothing(provider: str) -> None:
    with metadata_server(provider) as server:
        asked = of(server)
        list(asked.notices(SEEN))
        best_s = float("inf")
        for _ in range(20):  # the best of a few: another process may take the core
            began_s = time.thread_time()
            list(asked.notices(SEEN))
            best_s = min(best_s, time.thread_time() - began_s)
    assert best_s < 5e-3

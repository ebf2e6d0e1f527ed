"""`watch_notices` hears what a real server says, and nobody hears of what the server does wrong."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from steadyolo.adapters.notices.answers import PROMISED_S
from steadyolo.adapters.notices.notice import PROVIDERS, Notice
from steadyolo.adapters.notices.watch import INTERVAL_S, wait_s, watch_notices
from steadyolo.errors import UserError
from tests.servers.metadata import metadata_server

PATHS = {
    "aws": "/latest/meta-data/spot/instance-action",
    "google": "/computeMetadata/v1/instance/preempted",
    "azure": "/metadata/scheduledevents",
    "alibaba": "/latest/meta-data/instance/spot/termination-time",
}
BODIES = {
    "aws": '{"action": "terminate", "time": "2036-03-01T12:02:00Z"}',
    "google": "TRUE",
    "azure": '{"Events": [{"EventId": "1", "EventType": "Preempt", "Resources": ["vm-7"], "NotBefore": ""}]}',
    "alibaba": "2036-03-01T12:05:00Z",
}


def eventually(happened: Callable[[], object], *, within_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.01)


def watchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "steadyolo-notices"]


@pytest.fixture(autouse=True)
def _nobody_else_watches() -> None:
    eventually(lambda: not watchers())


def environment(told: str) -> dict[str, str]:
    return {"STEADYOLO_METADATA": told}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_notice_is_heard_at_the_next_question_and_once(provider: str) -> None:
    heard: list[Notice] = []
    told_after: list[int] = []
    with metadata_server(provider) as server:

        def on_notice(notice: Notice) -> None:
            told_after.append(server.count(path=PATHS[provider]))
            heard.append(notice)

        with watch_notices(on_notice, environment=environment(server.told), interval_s=0.3) as watched:
            assert watched == provider
            assert len(watchers()) == 1
            eventually(lambda: server.count(path=PATHS[provider], status=200 if server.bodies else 404))
            assert heard == []
            server.bodies[PATHS[provider]] = BODIES[provider]
            asked_before, began_s = server.count(path=PATHS[provider]), time.monotonic()
            eventually(lambda: heard)
            took_s = time.monotonic() - began_s
            eventually(lambda: server.count(path=PATHS[provider]) >= asked_before + 4)
    assert [notice.provider for notice in heard] == [provider]
    assert told_after[0] <= asked_before + 1
    assert took_s < 0.3 + 1.0
    assert heard[0].deadline_at is not None


def test_distinct_notices_are_all_heard_and_a_listener_that_raises_hears_on(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Notice] = []

    def on_notice(notice: Notice) -> None:
        heard.append(notice)
        raise OSError("nobody at home")

    with (
        metadata_server("aws") as server,
        watch_notices(on_notice, environment=environment(server.told), interval_s=0.05),
    ):
        server.bodies["/latest/meta-data/events/recommendations/rebalance"] = '{"noticeTime": "2036-03-01T12:00:00Z"}'
        eventually(lambda: len(heard) == 1)
        server.bodies[PATHS["aws"]] = BODIES["aws"]
        eventually(lambda: len(heard) == 2)
    assert [notice.kind for notice in heard] == ["rebalance", "terminate"]
    assert caplog.text.count("could not be passed on") == 2


@pytest.mark.parametrize("provider", ["aws", "google"])
@pytest.mark.parametrize("fault", ["down", "hang", "drop", "cut", 500, b"<html>garbage</html>"])
def test_a_broken_service_is_heard_by_nobody_and_recovers(
    provider: str, fault: str | int | bytes, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[Notice] = []
    with metadata_server(provider) as server:
        if fault == "down":
            server.stop()
            with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
                probe.connect(("127.0.0.1", int(server.address.rpartition(":")[2])))
        else:
            server.fault = fault
        with watch_notices(heard.append, environment=environment(server.told), interval_s=0.05):
            eventually(lambda: "does not answer as it should" in caplog.text)
            if fault == "hang":
                assert server.num_waiting, "nothing hung, so this proves nothing"
            elif fault != "down":
                eventually(lambda: len(server.requests) >= 3)
            assert heard == []
            server.bodies[PATHS[provider]] = BODIES[provider]
            server.start() if fault == "down" else server.release()
            eventually(lambda: heard)
    assert len(heard) == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING], (
        "told once, whatever the number of failures"
    )
    assert "STEADYOLO_METADATA=off" in caplog.text


def test_a_token_that_ends_costs_no_notice_and_no_word(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Notice] = []
    with (
        metadata_server("aws") as server,
        watch_notices(heard.append, environment=environment(server.told), interval_s=0.05),
    ):
        eventually(lambda: server.count(path=PATHS["aws"], status=404) >= 2)
        server.expire_tokens()
        server.bodies[PATHS["aws"]] = BODIES["aws"]
        eventually(lambda: heard)
        assert server.count(status=401) == 1, "no token was refused, so this proves nothing"
        assert server.count(method="PUT") == 2
    assert caplog.records == []


@pytest.mark.parametrize(
    ("num_failures", "waits_s"), [(0, 5.0), (1, 10.0), (2, 20.0), (3, 40.0), (4, 40.0), (10**9, 40.0)]
)
def test_a_service_that_fails_is_asked_less_often(num_failures: int, waits_s: float) -> None:
    assert wait_s(5.0, num_failures) == waits_s


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_service_that_failed_for_long_is_asked_again_well_within_a_notice(provider: str) -> None:
    assert wait_s(INTERVAL_S[provider], 10**9) <= PROMISED_S[provider] / 3  # type: ignore[index]


@pytest.mark.parametrize(
    ("marks", "told", "asks"),
    [
        ({"sys_vendor": "Amazon EC2"}, "", True),  # the control: here there would be something to hear
        ({"sys_vendor": "Amazon EC2"}, "off", False),
        ({"sys_vendor": "LENOVO", "product_name": "20XW"}, "", False),
        ({}, "", False),
    ],
)
def test_on_a_plain_machine_nobody_is_asked(tmp_path: Path, marks: dict[str, str], told: str, asks: bool) -> None:
    for name, value in marks.items():
        (tmp_path / name).write_text(f"{value}\n")
    with metadata_server("aws") as server:
        addresses = dict.fromkeys(PROVIDERS, server.address)
        with watch_notices(
            lambda notice: None,
            environment=environment(told),
            dmi_folder=tmp_path,
            addresses=addresses,
            interval_s=0.01,
        ) as watched:
            assert watched == ("aws" if asks else None)
            assert len(watchers()) == asks
            if asks:
                eventually(lambda: server.requests)
            else:
                time.sleep(0.3)  # thirty intervals
        assert bool(server.requests) is asks


def test_what_cannot_be_meant_is_refused_at_the_door() -> None:
    with (
        pytest.raises(UserError, match="STEADYOLO_METADATA=clouds"),
        watch_notices(print, environment=environment("clouds")),
    ):
        pass
    assert not watchers()


def test_leaving_between_two_questions_is_at_once() -> None:
    with metadata_server("aws") as server:
        with watch_notices(lambda notice: None, environment=environment(server.told), interval_s=3600.0):
            eventually(lambda: server.count(path=PATHS["aws"]))
            began_s = time.monotonic()
        assert time.monotonic() - began_s < 0.4
        assert not watchers()


def test_leaving_waits_for_no_answer_and_nothing_is_heard_afterwards() -> None:
    heard: list[Notice] = []
    with metadata_server("google") as server:
        server.fault = "hang"
        server.bodies[PATHS["google"]] = BODIES["google"]
        with watch_notices(heard.append, environment=environment(server.told), interval_s=0.05):
            eventually(lambda: server.num_waiting)
            began_s = time.monotonic()
        assert time.monotonic() - began_s < 1.0
        assert watchers(), "no answer was waited for, so this proves nothing"
        server.release()
        eventually(lambda: not watchers())
        assert server.count(path=PATHS["google"], status=200), "the notice did not arrive, so this proves nothing"
    assert heard == []


def test_leaving_after_an_error_ends_the_watch_too() -> None:
    with metadata_server("aws") as server:
        with pytest.raises(ZeroDivisionError), watch_notices(lambda notice: None, environment=environment(server.told)):
            raise ZeroDivisionError
        assert not watchers()


CHILD = """
import sys, time
from datetime import UTC, datetime
from steadyolo.adapters.notices.watch import watch_notices
from steadyolo.train.signals import EXIT_INTERRUPTED, StopRequest, exit_at_once

def heed(notice):
    left_s = notice.seconds_left(datetime.now(UTC))
    if left_s is not None:
        stop.request(f"{notice.provider} {notice.kind}", grace_s=left_s - 5)

with StopRequest(grace_s=1.0, overdue=exit_at_once, on_signal=print) as stop, watch_notices(heed, interval_s=0.1):
    print("ready", flush=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not stop.acknowledged():
        time.sleep(0.01)
    time.sleep(2.0)  # saving takes longer than a signal would have left
    print("saved", 20 < stop.remaining_s() < 25, flush=True)
sys.exit(EXIT_INTERRUPTED)
"""


def test_a_process_saves_in_the_time_that_the_notice_leaves() -> None:
    with metadata_server("google") as server:
        told = {**os.environ, "PYTHONPATH": ":".join(sys.path), "STEADYOLO_METADATA": server.told}
        with subprocess.Popen([sys.executable, "-c", CHILD], env=told, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            server.bodies[PATHS["google"]] = "TRUE"
            output, _ = child.communicate(timeout=30)
    assert output == "google preempt\nsaved True\n"
    assert child.returncode == 75

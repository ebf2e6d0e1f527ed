"""Real signals to real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from steadyolo.train.signals import EXIT_INTERRUPTED, STOP_SIGNALS, StopRequest

CHILD = """
import signal, sys, time
from steadyolo.train.signals import StopRequest, exit_at_once

told = []
with StopRequest(grace_s={grace_s}, overdue=exit_at_once, on_signal=told.append) as stop:
    print("ready", flush=True)
    deadline = time.monotonic() + {hang_s}
    while time.monotonic() < deadline and not ({heeds} and stop.acknowledged()):
        time.sleep(0.01)
        if stop.requested:
            {after_signal}
    time.sleep({after_s})
    acknowledged = stop.acknowledged()
print(acknowledged, told, stop.acknowledged(), told, flush=True)
"""


class Process:
    def __init__(
        self,
        *,
        grace_s: float = 20.0,
        hang_s: float = 20.0,
        heeds: bool = True,
        after_s: float = 0.0,
        after_signal: str = "pass",
    ) -> None:
        code = CHILD.format(grace_s=grace_s, hang_s=hang_s, heeds=heeds, after_s=after_s, after_signal=after_signal)
        self.child = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": ":".join(sys.path)}
        )
        assert self.child.stdout is not None
        assert self.child.stdout.readline() == "ready\n"

    def end(self) -> tuple[int, str]:
        output, _ = self.child.communicate(timeout=30)
        return self.child.returncode, output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_becomes_a_request(number: signal.Signals) -> None:
    process = Process()
    process.child.send_signal(number)
    assert process.end() == (0, f"True ['{number.name}'] True ['{number.name}']\n")


def test_more_signals_change_nothing() -> None:
    process = Process(after_s=0.5)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        process.child.send_signal(number)
        time.sleep(0.05)
    code, output = process.end()
    assert code == 0
    assert output == "True ['SIGTERM'] True ['SIGTERM']\n"


def test_a_request_that_is_not_met_ends_the_process_in_time() -> None:
    process = Process(grace_s=0.5, heeds=False)
    started_s = time.monotonic()
    process.child.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.child.send_signal(signal.SIGTERM)  # gives no more time
    code, output = process.end()
    assert code == EXIT_INTERRUPTED
    assert output == ""
    assert 0.4 < time.monotonic() - started_s < 5.0


def test_a_request_that_is_met_ends_nothing_later() -> None:
    overdue = threading.Event()
    with StopRequest(grace_s=0.2, overdue=overdue.set, on_signal=lambda _: None) as stop:
        stop.request()
        assert stop.acknowledged()
    assert not overdue.wait(0.5)


def test_a_request_may_bring_more_time_than_a_signal() -> None:
    overdue = threading.Event()
    with StopRequest(grace_s=0.2, overdue=overdue.set, on_signal=lambda _: None) as stop:
        assert stop.remaining_s() == 0.2
        stop.request("notice", grace_s=60)
        assert not overdue.wait(0.6)
        assert 55 < stop.remaining_s() <= 60
    assert not overdue.is_set()


def test_a_request_never_brings_less_time_than_a_signal() -> None:
    overdue = threading.Event()
    with StopRequest(grace_s=60, overdue=overdue.set, on_signal=lambda _: None) as stop:
        stop.request("notice", grace_s=-3)
        assert stop.remaining_s() > 55
        assert not overdue.wait(0.3)


def test_a_signal_after_a_notice_shortens_its_time() -> None:
    overdue, told = threading.Event(), []
    with StopRequest(grace_s=0.5, overdue=overdue.set, on_signal=told.append) as stop:
        thread = threading.Thread(target=stop.request, args=("notice", 60))
        thread.start()
        thread.join()
        assert not overdue.wait(0.7)
        os.kill(os.getpid(), signal.SIGTERM)
        started_s = time.monotonic()
        assert stop.acknowledged()
        assert stop.remaining_s() <= 0.5
        assert overdue.wait(5)
        assert time.monotonic() - started_s > 0.4
    assert told == ["notice"], "the first request names the reason"


def test_a_signal_after_a_notice_that_ends_sooner_changes_nothing() -> None:
    with StopRequest(grace_s=9, overdue=lambda: None, on_signal=lambda _: None) as stop:
        stop.request("notice", grace_s=9)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.remaining_s() < 8.9


def test_a_notice_after_a_signal_brings_no_time() -> None:
    process = Process(grace_s=0.5, heeds=False, after_signal="stop.request('notice', grace_s=60)")
    started_s = time.monotonic()
    process.child.send_signal(signal.SIGTERM)
    assert process.end() == (EXIT_INTERRUPTED, "")
    assert 0.4 < time.monotonic() - started_s < 5.0


def test_nothing_ends_after_a_notice_and_a_signal_that_were_met() -> None:
    overdue = threading.Event()
    with StopRequest(grace_s=0.3, overdue=overdue.set, on_signal=lambda _: None) as stop:
        stop.request("notice", grace_s=0.6)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.acknowledged()
    assert not overdue.wait(1.0)


def test_handlers_are_as_before_afterwards() -> None:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    with pytest.raises(ZeroDivisionError), StopRequest(grace_s=9, overdue=lambda: None, on_signal=lambda _: None):
        assert all(signal.getsignal(number) is not before[number] for number in (signal.SIGTERM, signal.SIGINT))
        raise ZeroDivisionError
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before


def test_a_child_that_was_forked_has_nothing_to_decide() -> None:
    with StopRequest(grace_s=9, overdue=lambda: None, on_signal=lambda _: None) as stop:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(stop.requested)
        assert os.waitpid(child, 0)[1] == 0
        assert not stop.requested


def test_outside_the_main_thread_only_a_request_counts() -> None:
    seen = []

    def work() -> None:
        before = signal.getsignal(signal.SIGTERM)
        with StopRequest(grace_s=9, overdue=lambda: None, on_signal=seen.append) as stop:
            assert signal.getsignal(signal.SIGTERM) is before
            assert not stop.acknowledged()
            stop.request("cancelled")
            assert stop.acknowledged()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == ["cancelled"]


def test_a_run_that_outlives_its_terminal_is_left_alone() -> None:
    code = textwrap.dedent("""
        import os, signal
        from steadyolo.train.signals import StopRequest
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does
        with StopRequest(grace_s=9, overdue=lambda: None, on_signal=lambda _: None) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            print(stop.requested)
    """)
    environment = {"PYTHONPATH": ":".join(sys.path)}
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert output.stdout == "False\n"

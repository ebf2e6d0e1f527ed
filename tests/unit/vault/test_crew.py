from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError

import pytest

from steadyolo.vault.crew import Crew

HANGS = """
import time
from concurrent.futures import ThreadPoolExecutor
from steadyolo.vault.crew import Crew
made = {crew}
made.submit(lambda: time.sleep(60))
time.sleep(0.2)
"""


def test_results_come_in_order_and_errors_are_raised() -> None:
    with Crew(3, name="t") as crew:
        assert list(crew.map(lambda number: number * number, range(20))) == [number * number for number in range(20)]
        with pytest.raises(ZeroDivisionError):
            list(crew.map(lambda number: 1 // number, [1, 0]))


def test_leaving_waits_for_what_is_under_way_and_cancels_the_rest() -> None:
    begun, done = threading.Event(), []

    def slow() -> None:
        begun.set()
        time.sleep(0.2)
        done.append(True)

    with Crew(1, name="t") as crew:
        first, second = crew.submit(slow), crew.submit(slow)
        begun.wait(10)
    assert (first.done(), done) == (True, [True])
    with pytest.raises(CancelledError):
        second.result(0)


def exits_within(seconds: float, crew: str) -> bool:
    try:
        subprocess.run([sys.executable, "-c", HANGS.format(crew=crew)], timeout=seconds, check=True)
    except subprocess.TimeoutExpired:
        return False
    return True


def test_a_process_exits_while_its_crew_waits_for_a_store_that_never_answers() -> None:
    assert exits_within(20, "Crew(1, name='t')")


def test_daemon_threads_are_needed() -> None:
    """The control: with the library's pool the process waits for them."""
    assert not exits_within(8, "ThreadPoolExecutor(1)")

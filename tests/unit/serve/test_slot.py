"""How soon a worker is started again, and what is overdue."""

from __future__ import annotations

from steadyolo.serve.overdue import Calls
from steadyolo.serve.slot import restart_delay_s


def test_the_first_end_costs_no_time_and_many_cost_more() -> None:
    delays = [restart_delay_s(num) for num in range(1, 40)]
    assert delays[:4] == [0.0, 0.2, 0.4, 0.8]
    assert delays == sorted(delays)
    assert delays[-1] == 30.0


def test_a_call_is_overdue_after_its_beats() -> None:
    calls = Calls()
    with calls.limited("a run", 0.5):
        assert calls.beat(0.3) is None
        with calls.limited("another", 9.0):
            assert calls.beat(0.3) == "a run took longer than 0.5 s"
    assert calls.beat(9.0) is None

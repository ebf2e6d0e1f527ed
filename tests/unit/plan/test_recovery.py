from __future__ import annotations

import pytest

from steadyolo.plan.recovery import Rewind, Stop, next_move


@pytest.mark.parametrize(
    ("faults", "tries", "goes_back"), [(1, 3, True), (3, 3, True), (4, 3, False), (1, 1, True), (2, 1, False)]
)
def test_a_run_goes_back_so_many_times(faults: int, tries: int, goes_back: bool) -> None:
    move = next_move(faults_since_progress=faults, num_tries=tries)
    assert isinstance(move, Rewind if goes_back else Stop)
    if isinstance(move, Stop):
        assert str(faults) in move.why

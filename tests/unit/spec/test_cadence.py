from __future__ import annotations

import pytest

from steadyolo.errors import UserError
from steadyolo.spec.cadence import Auto, EverySeconds, EverySteps, SaveCadence, parse_cadence, parse_duration_s


@pytest.mark.parametrize(
    ("text", "cadence"),
    [
        ("auto", Auto()),
        (" AUTO ", Auto()),
        ("30s", EverySeconds(30)),
        ("0.5s", EverySeconds(0.5)),
        ("5min", EverySeconds(300)),
        ("5m", EverySeconds(300)),
        ("1.5h", EverySeconds(5400)),
        ("90", EverySeconds(90)),
        ("200steps", EverySteps(200)),
        ("1 step", EverySteps(1)),
    ],
)
def test_a_cadence_is_read(text: str, cadence: SaveCadence) -> None:
    assert parse_cadence(text) == cadence


@pytest.mark.parametrize("text", ["", "never", "0", "0s", "-5s", "0steps", "1.5steps", "5 parsecs", "1e3s", "s", "inf"])
def test_a_cadence_that_cannot_be(text: str) -> None:
    with pytest.raises(UserError, match=r"save\.every is") as caught:
        parse_cadence(text)
    assert "200steps" in caught.value.remedy


@pytest.mark.parametrize("text", ["", "0", "-1h", "1d", "h"])
def test_a_length_of_time_that_cannot_be(text: str) -> None:
    with pytest.raises(UserError, match="is not a length of time"):
        parse_duration_s(text)


@pytest.mark.parametrize(
    "make",
    [
        lambda: EverySeconds(0),
        lambda: EverySteps(0),
        lambda: Auto(mtbf_s=0),
        lambda: Auto(budget_share=0),
        lambda: Auto(budget_share=2),
        lambda: Auto(first_s=-1),
    ],
)
def test_a_cadence_without_sense_is_refused(make: object) -> None:
    with pytest.raises(UserError):
        make()  # type: ignore[operator]

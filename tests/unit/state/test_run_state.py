from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyolo.errors import UserError
from steadyolo.state.run_state import Cursor, Ledger, RunState
from steadyolo.state.snapshot import checkpoint_name

COUNTS = st.integers(0, 2**50)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
CURSORS = st.builds(Cursor, epoch=st.integers(0, 10**6), batch=st.integers(0, 10**6))
LEDGERS = st.builds(Ledger, best_fitness=st.none() | NUMBERS, best_epoch=COUNTS, best_tick=COUNTS, stop=st.booleans())
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | NUMBERS
    | st.text(max_size=5)
    | st.lists(NUMBERS, max_size=2)
)
STATES = st.builds(
    RunState,
    step=COUNTS,
    cursor=CURSORS,
    pending_batches=st.integers(0, 64),
    epochs_closed=COUNTS,
    ema_updates=COUNTS,
    ledger=LEDGERS,
    loss_means=st.dictionaries(st.text(max_size=9), NUMBERS, max_size=5),
    seconds=st.floats(0, 1e9),
    skipped=st.lists(CURSORS, max_size=3).map(tuple),
    optimizer_groups=st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=4), max_size=3).map(tuple),
    scaler=st.none() | st.dictionaries(st.text(max_size=5), NUMBERS, max_size=3),
)


@given(STATES)
def test_a_state_comes_back_from_json_as_it_was(state: RunState) -> None:
    assert RunState.from_dict(state.to_dict()) == state
    assert RunState.from_dict(json.loads(json.dumps(state.to_dict()))) == state


@given(STATES, st.integers(1, 50))
def test_ticks_order_the_states_of_a_run(state: RunState, num_batches: int) -> None:
    from dataclasses import replace

    cursor = Cursor(epoch=state.cursor.epoch, batch=state.cursor.batch % num_batches)
    state = replace(state, cursor=cursor, epochs_closed=cursor.epoch)
    later = replace(state, cursor=replace(cursor, batch=cursor.batch + 1))
    trained = replace(state, cursor=replace(cursor, batch=num_batches))
    closed = replace(state, cursor=Cursor(epoch=cursor.epoch + 1, batch=0), epochs_closed=cursor.epoch + 1)
    assert state.tick(num_batches) < later.tick(num_batches) <= trained.tick(num_batches) < closed.tick(num_batches)


def test_names_of_saves_sort_in_their_order() -> None:
    moments = [(0, 0), (0, 1), (1, 2), (1, 3), (9, 99), (10, 100), (10**7, 10**7 + 5)]
    names = [checkpoint_name(step=step, tick=tick) for step, tick in moments]
    assert names == sorted(names)
    assert len(set(names)) == len(names)


def changed(**values: Any) -> dict[str, Any]:
    return {**RunState.fresh().to_dict(), **values}


@pytest.mark.parametrize(
    "raw",
    [
        {},
        changed(version=2),
        changed(version="1"),
        changed(added=1),
        {name: value for name, value in changed().items() if name != "cursor"},
        {name: value for name, value in changed().items() if name != "version"},
    ],
    ids=["empty", "newer", "version of another type", "unknown key", "missing key", "no version"],
)
def test_a_state_of_another_shape_is_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="not a version 1 run state") as caught:
        RunState.from_dict(raw)
    assert "resume with the steadyolo version that wrote it" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cursor", {"epoch": 1}),
        ("cursor", {"epoch": 1, "batch": 0, "sample": 2}),
        ("ledger", {"best": 0.5}),
        ("skipped", [{"epoch": 1}]),
    ],
)
def test_a_part_of_another_shape_is_refused(name: str, value: object) -> None:
    with pytest.raises(UserError):
        RunState.from_dict(changed(**{name: value}))


def test_a_stored_state_of_version_1_is_read() -> None:
    """What this release wrote must be read by every later one, or upgraded by a named function."""
    state = RunState.from_dict(json.loads(STORED))
    assert state.cursor == Cursor(epoch=1, batch=3)
    assert state.skipped == (Cursor(epoch=0, batch=2),)
    assert state.ledger == Ledger(best_fitness=0.25, best_epoch=1, best_tick=5)
    assert state.optimizer_groups[0]["lr"] == 0.001
    assert json.loads(json.dumps(state.to_dict())) == json.loads(STORED)


STORED = """{"version": 1, "step": 4, "cursor": {"epoch": 1, "batch": 3}, "pending_batches": 1, "epochs_closed": 1,
"ema_updates": 4, "ledger": {"best_fitness": 0.25, "best_epoch": 1, "best_tick": 5, "stop": false},
"loss_means": {"box_loss": 1.5}, "seconds": 2.5, "skipped": [{"epoch": 0, "batch": 2}],
"optimizer_groups": [{"lr": 0.001, "betas": [0.9, 0.999]}], "scaler": null}"""

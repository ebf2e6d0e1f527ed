"""The loop and its supervisor, driven by a fake run: no torch, no disk, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyolo.errors import Diverged, DoesNotFit
from steadyolo.plan.fit import Fit, FitSchedule
from steadyolo.plan.recovery import Misfit
from steadyolo.state.run_state import Cursor, Ledger, RunState
from steadyolo.train.loop import train
from steadyolo.train.out_of_memory import OutOfMemory, Shortage
from steadyolo.train.supervisor import NotFinite, supervise


@dataclass
class FakeRun:
    """A run whose weights are the list of what it learned from. Saves keep everything, at once."""

    num_epochs: int = 3
    num_batches: int = 4
    saves_due: frozenset[int] = frozenset()  # ticks
    stop_after: int | None = None  # a stop is asked for when this many batches and scores are done
    cut_scores: bool = False  # a stop that is asked for during a score breaks it off
    bad: frozenset[Cursor] = frozenset()  # batches whose loss is not finite
    early_stop_after: int | None = None
    weights: tuple[Cursor, ...] = ()
    did: list[str] = field(default_factory=list)
    saved: list[tuple[RunState, tuple[Cursor, ...], bool]] = field(default_factory=list)
    drained: bool = False
    reports: list[tuple[tuple[Cursor, ...], int, str]] = field(default_factory=list)
    num_done: int = 0
    left_out: tuple[Cursor, ...] = ()
    needs: dict[Cursor, int] = field(default_factory=dict)  # the most images in a pass for which there is memory
    hiccups: set[Cursor] = field(default_factory=set)  # batches that fit once memory was freed
    half_done: bool = False  # what fails has changed the weights already
    schedule: FitSchedule = field(default_factory=lambda: FitSchedule(planned=Fit(num_images=8)))
    short_of_memory: list[tuple[Cursor, int, str]] = field(default_factory=list)
    used: dict[Cursor, int] = field(default_factory=dict)  # images in a pass, by batch

    def is_over(self, state: RunState) -> bool:
        return state.epochs_closed >= self.num_epochs or state.ledger.stop

    def is_trained(self, state: RunState) -> bool:
        return state.cursor.batch >= self.num_batches

    def train_batch(self, state: RunState) -> RunState:
        cursor = state.cursor
        self.num_done += 1
        if cursor not in state.skipped:
            if cursor in self.bad:
                raise NotFinite("the loss", (cursor,))
            self._allocate(state)
            self.weights = (*self.weights, cursor)
        self.did.append(f"batch {cursor.epoch}.{cursor.batch}")
        return replace(state, cursor=replace(cursor, batch=cursor.batch + 1), step=state.step + 1)

    def close_epoch(self, state: RunState) -> RunState:
        self.num_done += 1
        if self.cut_scores and self.is_stopping():
            return state
        self.did.append(f"score {state.cursor.epoch}")
        closed = state.epochs_closed + 1
        stop = self.early_stop_after is not None and closed >= self.early_stop_after
        return replace(state, cursor=Cursor(epoch=closed, batch=0), epochs_closed=closed, ledger=Ledger(stop=stop))

    def is_stopping(self) -> bool:
        return self.stop_after is not None and self.num_done >= self.stop_after

    def save_is_due(self, state: RunState) -> bool:
        return state.tick(self.num_batches) in self.saves_due

    def save(self, state: RunState, *, required: bool) -> None:
        assert not self.drained
        self.did.append("save")
        self.saved.append((state, self.weights, required))

    def drain(self) -> None:
        self.drained = True

    def rewind(self, *, skip: tuple[Cursor, ...]) -> RunState:
        state, self.weights, _ = self.saved[-1]
        self.left_out = tuple(sorted({*self.left_out, *skip}))
        return replace(state, skipped=self.left_out)

    def _allocate(self, state: RunState) -> None:
        cursor = state.cursor
        num_images = self.used[cursor] = self.schedule.at(cursor.epoch, cursor.batch).num_images
        if cursor in self.hiccups or num_images > self.needs.get(cursor, 8):
            self.hiccups.discard(cursor)
            self.failed = state
            if self.half_done:
                self.weights = (*self.weights, cursor)
            raise OutOfMemory("backward", "8 bytes")

    def undo(self, fault: OutOfMemory) -> Shortage:
        at, state = self.failed.cursor, self.failed
        if self.half_done:
            state = self.rewind(skip=())
        fit = self.schedule.at(at.epoch, at.batch)
        return Shortage(at=at, misfit=Misfit(fit=fit, planned=self.schedule.planned, num_images=8), state=state)

    def adopt(self, fit: Fit, shortage: Shortage) -> None:
        self.schedule = self.schedule.changed(shortage.at.epoch, shortage.at.batch, fit)

    def tell(self, fault: OutOfMemory, shortage: Shortage, attempt: int, action: str) -> None:
        assert fault.__traceback__ is None
        self.short_of_memory.append((shortage.at, attempt, action))

    def give_up(self, fault: OutOfMemory, shortage: Shortage, why: str) -> DoesNotFit:
        self.save(shortage.state, required=True)
        return DoesNotFit(why, remedy="use less")

    def report(self, fault: NotFinite, attempt: int, action: str) -> None:
        self.reports.append((fault.batches, attempt, action))


def all_batches(run: FakeRun) -> tuple[Cursor, ...]:
    return tuple(Cursor(epoch=e, batch=b) for e in range(run.num_epochs) for b in range(run.num_batches))


def test_the_verbs_come_in_their_order() -> None:
    run = FakeRun(num_epochs=2, num_batches=2, saves_due=frozenset({1}))
    end = train(run, RunState.fresh())
    one = ["batch 0.0", "save", "batch 0.1", "score 0", "save"]
    assert run.did == [*one, "batch 1.0", "batch 1.1", "score 1", "save"]
    assert [required for *_, required in run.saved] == [False, True, True]
    assert end.epochs_closed == 2
    assert run.drained


def test_a_run_that_is_over_does_nothing_but_wait_for_its_saves() -> None:
    run = FakeRun(num_epochs=1)
    train(run, replace(RunState.fresh(), epochs_closed=1))
    assert run.did == []
    assert run.drained


def test_a_decision_to_stop_ends_the_run_after_its_save() -> None:
    run = FakeRun(early_stop_after=1)
    end = train(run, RunState.fresh())
    assert run.did[-2:] == ["score 0", "save"]
    assert end.epochs_closed == 1


@pytest.mark.parametrize("stop_after", range(1, 16))
@pytest.mark.parametrize("cut_scores", [False, True])
def test_a_stop_ends_with_a_required_save_of_the_newest_state(stop_after: int, cut_scores: bool) -> None:
    run = FakeRun(stop_after=stop_after, cut_scores=cut_scores)
    end = train(run, RunState.fresh())
    assert run.num_done == min(stop_after, 15)
    assert run.saved[-1] == (end, run.weights, True)
    assert run.drained

    further = FakeRun(weights=run.weights)
    assert train(further, end).epochs_closed == 3
    assert further.weights == all_batches(further), "something was learned twice or not at all"


@given(st.sets(st.integers(0, 14)), st.lists(st.integers(1, 9), max_size=6))
def test_any_number_of_stops_leaves_no_trace(due: set[int], stops: list[int]) -> None:
    state, weights = RunState.fresh(), ()
    for stop_after in [*stops, 99]:
        run = FakeRun(saves_due=frozenset(due), stop_after=stop_after, cut_scores=True, weights=weights)
        state = train(run, state)
        weights = run.weights
    assert weights == all_batches(run)
    assert state.epochs_closed == 3


# --- the supervisor ---


def start(run: FakeRun) -> RunState:
    run.save(RunState.fresh(), required=True)
    return RunState.fresh()


@pytest.mark.parametrize("due", [frozenset(), frozenset(range(99))], ids=["saved rarely", "saved often"])
@given(bad=st.sets(st.builds(Cursor, epoch=st.integers(0, 2), batch=st.integers(0, 3)), max_size=6))
def test_batches_that_are_bad_are_left_out_and_nothing_else(due: frozenset[int], bad: set[Cursor]) -> None:
    run = FakeRun(bad=frozenset(bad), saves_due=due)
    end = supervise(run, start(run), num_tries=4)
    assert run.weights == tuple(cursor for cursor in all_batches(run) if cursor not in bad)
    assert set(end.skipped) == bad
    assert len(run.reports) == len(bad)


def test_a_run_gives_up_after_its_tries_and_says_why() -> None:
    run = FakeRun(bad=frozenset(all_batches(FakeRun())))
    with pytest.raises(Diverged) as caught:
        supervise(run, start(run), num_tries=2)
    assert "training stopped at epoch 1: the loss is not finite" in caught.value.message
    assert "lower lr0" in caught.value.remedy
    assert [attempt for _, attempt, _ in run.reports] == [1, 2, 3]
    assert run.reports[-1][2] == "giving up"
    assert run.weights == ()


def test_an_epoch_that_is_scored_gives_new_tries() -> None:
    bad = frozenset(Cursor(epoch=epoch, batch=batch) for epoch in range(3) for batch in (1, 2))
    run = FakeRun(bad=bad)
    supervise(run, start(run), num_tries=2)
    assert [attempt for _, attempt, _ in run.reports] == [1, 2] * 3


@pytest.mark.parametrize("half_done", [False, True], ids=["taken back", "half done"])
@pytest.mark.parametrize("due", [frozenset(), frozenset(range(99))], ids=["saved rarely", "saved often"])
@given(
    needs=st.dictionaries(st.builds(Cursor, epoch=st.integers(0, 2), batch=st.integers(0, 3)), st.integers(1, 8)),
    hiccups=st.sets(st.builds(Cursor, epoch=st.integers(0, 2), batch=st.integers(0, 3))),
)
def test_a_batch_that_does_not_fit_is_done_again_and_each_is_used_once(
    half_done: bool, due: frozenset[int], needs: dict[Cursor, int], hiccups: set[Cursor]
) -> None:
    run = FakeRun(needs=needs, hiccups=set(hiccups), saves_due=due, half_done=half_done)
    end = supervise(run, start(run), num_tries=1)
    assert run.weights == all_batches(run)
    assert end.step == len(all_batches(run))
    least = 8
    for cursor in all_batches(run):
        assert run.used[cursor] <= min(needs.get(cursor, 8), least)
        least = run.used[cursor]
    assert run.reports == []


def test_freeing_is_tried_first_and_once_an_epoch() -> None:
    at = [Cursor(epoch=1, batch=1), Cursor(epoch=1, batch=2), Cursor(epoch=2, batch=0)]
    run = FakeRun(hiccups=set(at))
    supervise(run, start(run), num_tries=1)
    free, halve = "freeing what is not in use and doing it again", "doing it again with 4 images in a pass"
    assert run.short_of_memory == [(at[0], 1, free), (at[1], 1, halve), (at[2], 1, free)]


def test_a_batch_that_never_fits_ends_the_run_after_a_save() -> None:
    at = Cursor(epoch=1, batch=2)
    run = FakeRun(needs={at: 0})
    with pytest.raises(DoesNotFit, match="1 image in a pass already"):
        supervise(run, start(run), num_tries=1)
    assert [attempt for _, attempt, _ in run.short_of_memory] == [1, 2, 3, 4, 5]
    assert run.short_of_memory[-1] == (at, 5, "giving up")
    state, weights, required = run.saved[-1]
    assert (state.cursor, required) == (at, True)
    assert weights == all_batches(run)[: 4 + 2]


def test_other_faults_are_not_the_supervisors() -> None:
    class Broken(FakeRun):
        def train_batch(self, state: RunState) -> RunState:
            raise ZeroDivisionError

    run = Broken()
    with pytest.raises(ZeroDivisionError):
        supervise(run, start(run), num_tries=3)
    assert run.reports == []


def test_the_loop_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, steadyolo.train.loop, steadyolo.train.supervisor; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], check=False, env={"PYTHONPATH": ":".join(sys.path)}).returncode
        == 0
    )

"""`Uploader`: keeps one tier up to date with a run folder, behind the training loop."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from steadyolo import events
from steadyolo.errors import DataLoss, SteadyError, UserError
from steadyolo.plan.retention import plan_retention
from steadyolo.plan.uploads import plan_order, plan_spool, plan_wait_s
from steadyolo.vault.checkpoints import is_committed
from steadyolo.vault.claim import Claim
from steadyolo.vault.copy import Copy
from steadyolo.vault.files import OURS_FOLDER
from steadyolo.vault.mirror import RunMirror
from steadyolo.vault.priority import give_way
from steadyolo.vault.remote_run import Fenced, RemoteRun

logger = logging.getLogger(__name__)

CHECK_EVERY_S = 30.0  # an idle writer notices a successor within this time
MIRROR_EVERY_S = 60.0
TELL_EVERY_S = 60.0  # a tier that keeps failing is told about once in this time


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSettings:
    """How one tier is kept. `bandwidth_bytes_s` None: as fast as it goes."""

    tier: str  # disk, store or replica
    keep_last: int = 5
    spool_bytes: int = 4 * 2**30
    bandwidth_bytes_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Placed:
    run: RemoteRun
    mirror: RunMirror


class Uploader:
    """A thread that sends committed checkpoints and changed files to one tier, newest and best first.

    No failure of the tier ever reaches the loop: it is told as an event, and tried again for as long as the run lasts.
    When another process takes the run over, `TakenOver` is told once and nothing more is written.
    `place` claims the run in the tier and returns it; `token_of` says which session committed a checkpoint of the
    folder. The clock, and `chance` (0 to 1) that spreads retries out, are given from outside.
    """

    def __init__(
        self,
        folder: Path,
        *,
        settings: TierSettings,
        claim: Claim,
        place: Callable[[], RemoteRun],
        token_of: Callable[[str], int],
        best: str | None,
        emit: Callable[[events.Event], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = lambda: 0.5,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._checkpoints = folder / OURS_FOLDER / "checkpoints"
        self._claim = claim
        self._place = place
        self._placed: _Placed | None = None  # the run in the tier, once it is claimed
        self._token_of = token_of
        self._emit = emit
        self._clock = clock
        self._chance = chance
        self._pacer = _Pacer(settings.bandwidth_bytes_s, clock=clock, sleep=sleep)
        self._may_delete = True
        self._newest_kept: str | None = None  # in this session
        self._num_failures = 0
        self._told_at = self._checked_at = self._mirrored_at = -float("inf")
        self._changed = threading.Condition()  # guards what follows
        self._waiting: dict[str, int] = {}  # bytes, by checkpoint
        self._best = best
        self._under_way: str | None = None
        self._num_flushes = 0
        self._num_mirrored = 0  # of them: what changed before each of these is in the tier
        self._is_closing = False
        self._is_fenced = False
        self._thread = threading.Thread(target=self._work, name=f"steadyolo-{settings.tier}", daemon=True)

    def start(self) -> None:
        """Begin to work. May be called once."""
        self._thread.start()

    def offer(self, name: str, num_bytes: int, *, best: str | None) -> None:
        """Have committed checkpoint `name` uploaded soon. Never waits for the store."""
        with self._changed:
            self._waiting[name] = num_bytes
            self._best = best
            given_up = plan_spool(
                self._waiting, best=best, under_way=self._under_way, budget_bytes=self._settings.spool_bytes
            )
            for doomed in given_up:
                del self._waiting[doomed]
            self._changed.notify_all()
        for doomed in given_up:
            self._emit(events.CopyDropped(tier=self._settings.tier, name=doomed, why="newer ones fill the spool"))

    def needed(self) -> Collection[str]:
        """Checkpoints that the run folder must keep, because they have yet to be read from it."""
        with self._changed:
            return () if self._is_fenced else {*self._waiting, *([self._under_way] if self._under_way else [])}

    def flush(self) -> None:
        """Send all that waits, and the rest of the folder, at once."""
        with self._changed:
            self._num_flushes += 1
            self._num_failures = 0  # this is no time to sit out a long wait
            self._changed.notify_all()

    def drain(self, timeout_s: float) -> bool:
        """Wait until what `flush` asked for is done. False when that takes longer."""
        with self._changed:
            return self._changed.wait_for(self._is_drained, timeout_s)

    def close(self, timeout_s: float = 1.0) -> None:
        """End the thread, which never keeps a process from exiting. What waits is found again by the next session."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    # --- in the uploader's thread ---

    def _work(self) -> None:
        give_way()
        while not self._is_closing:
            wait_s = self.work_once()
            with self._changed:
                self._changed.notify_all()  # whoever drains looks again
                if wait_s > 0:
                    self._changed.wait_for(lambda: self._is_closing or self._has_news(), wait_s)

    def work_once(self) -> float:
        """Do the next thing, and return how many seconds there is nothing to do."""
        if self._is_fenced:
            return CHECK_EVERY_S
        try:
            wait_s = self._next_thing()
        except Fenced as fenced:
            self._give_way(fenced)
            return CHECK_EVERY_S
        except Exception as error:  # noqa: BLE001 - the thread's edge
            return self._failed(error)
        self._num_failures = 0
        return wait_s

    def _next_thing(self) -> float:
        placed = self._placed = self._placed or self._arrive()
        name = self._next_name()
        if name is not None:
            self._upload(placed.run, name)
            return 0.0
        now = self._clock()
        num_flushes = self._num_flushes  # one that comes during the push asks for another
        if self._mirror_is_due(now):
            placed.mirror.push(claim=self._claim, pace=self._pacer.wait)
            self._mirrored_at = self._checked_at = now
            with self._changed:
                self._num_mirrored = num_flushes
        elif now - self._checked_at >= CHECK_EVERY_S:
            placed.run.check(self._claim)
            self._checked_at = now
        return min(CHECK_EVERY_S - (now - self._checked_at), MIRROR_EVERY_S - (now - self._mirrored_at))

    def _arrive(self) -> _Placed:
        """Claim the tier, and queue what the folder has and the tier lacks from sessions before."""
        run = self._place()
        there = set(run.copies())
        here = {Copy(self._token_of(path.name), path.name): path for path in self._checkpoints.glob("step-*")}
        doomed = self._doomed({*there, *(copy for copy, path in here.items() if is_committed(path))})
        with self._changed:
            for copy, path in sorted(here.items()):
                if is_committed(path) and copy not in there and copy not in doomed:
                    self._waiting.setdefault(copy.name, sum(file.stat().st_size for file in path.iterdir()))
        self._delete(run, doomed & there)
        return _Placed(run, RunMirror(run, self._folder))

    def _next_name(self) -> str | None:
        with self._changed:
            order = plan_order(self._waiting, best=self._best, newest_kept=self._newest_kept)
            self._under_way = order[0] if order else None
            return self._under_way

    def _upload(self, run: RemoteRun, name: str) -> None:
        started = self._clock()
        copy = Copy(self._token_of(name), name)
        try:
            sent_bytes = run.upload(self._checkpoints / name, copy, claim=self._claim, pace=self._pacer.wait)
        except (DataLoss, FileNotFoundError) as error:
            self._settle(name)  # trying again cannot help; a newer one will come
            self._emit(events.CopyDropped(tier=self._settings.tier, name=name, why=str(error)))
            return
        self._settle(name)
        self._newest_kept = max(name, self._newest_kept or name)
        now = self._clock()
        self._checked_at = now
        self._emit(
            events.CopyVerified(tier=self._settings.tier, name=name, num_bytes=sent_bytes, seconds=now - started)
        )
        self._delete(run, self._doomed(run.copies()))

    def _settle(self, name: str) -> None:
        with self._changed:
            self._waiting.pop(name, None)
            self._under_way = None

    def _doomed(self, copies: Collection[Copy]) -> set[Copy]:
        """Which of `copies` are too many."""
        labels = {f"{copy.token:06d}/{copy.name}": copy for copy in copies}
        pinned = [label for label, copy in labels.items() if copy.name == self._best]
        return {labels[label] for label in plan_retention(labels, keep_last=self._settings.keep_last, pinned=pinned)}

    def _delete(self, run: RemoteRun, copies: Collection[Copy]) -> None:
        """Delete those of `copies` that are not a successor's. Raises: `Fenced` when there is one."""
        try:
            for copy in sorted(copies) if self._may_delete else ():
                run.check(self._claim)
                run.delete(copy)
        except Fenced:
            raise
        except UserError:
            # A role without the right to delete is the safe one to have: `store prune` or the bucket's rules do it.
            self._may_delete = False

    def _mirror_is_due(self, now: float) -> bool:
        with self._changed:
            if self._num_mirrored < self._num_flushes:
                return True
        return now - self._mirrored_at >= MIRROR_EVERY_S

    def _give_way(self, fenced: Fenced) -> None:
        with self._changed:
            self._is_fenced = True
            self._waiting.clear()
            self._under_way = None
        self._emit(events.TakenOver(tier=self._settings.tier, why=fenced.message))

    def _failed(self, error: Exception) -> float:
        self._num_failures += 1
        with self._changed:
            self._under_way = None
        wait_s = plan_wait_s(num_failures=self._num_failures, chance=self._chance())
        now = self._clock()
        if self._num_failures == 1 or now - self._told_at >= TELL_EVERY_S:
            self._told_at = now
            text = error.message if isinstance(error, SteadyError) else f"{type(error).__name__}: {error}"
            remedy = error.remedy if isinstance(error, SteadyError) else ""
            if not isinstance(error, SteadyError):
                logger.exception("copying to the %s failed", self._settings.tier)
            self._emit(
                events.CopyFailed(
                    tier=self._settings.tier, error=text, remedy=remedy, attempt=self._num_failures, retry_s=wait_s
                )
            )
        return wait_s

    def _has_news(self) -> bool:
        """Something to do that was not there when the thread went to sleep. A failing tier is left to its wait."""
        if self._num_failures:
            return False
        return bool(self._waiting) or self._num_mirrored < self._num_flushes

    def _is_drained(self) -> bool:
        return self._is_fenced or (
            not self._waiting and not self._under_way and 0 < self._num_flushes == self._num_mirrored
        )


class _Pacer:
    """Holds transfers back so that, on average, no more than so many bytes leave in a second."""

    def __init__(self, bytes_s: float | None, *, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self._bytes_s = bytes_s
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_at = clock()

    def wait(self, num_bytes: int) -> None:
        """Return when `num_bytes` may be sent."""
        if self._bytes_s is None:
            return
        with self._lock:
            start = max(self._free_at, self._clock())
            self._free_at = start + num_bytes / self._bytes_s
        self._sleep(max(0.0, start - self._clock()))

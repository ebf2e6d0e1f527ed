"""`BackgroundWriter`: commits snapshots behind the training loop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from steadyolo.errors import DataLoss, Transient, UserError
from steadyolo.plan.retention import plan_retention
from steadyolo.state.snapshot import Snapshot
from steadyolo.vault.checkpoints import Checkpoints, Committed

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Job:
    snapshot: Snapshot
    pin: bool


def _ignore(*_: object) -> None:
    """What a hook does that nobody hung anything on."""


class BackgroundWriter:
    """A thread that commits snapshots one after the other, so that no failure of storage stops or slows training.

    The hooks run in the writer's thread, except `release` of a snapshot that gave way and the `on_failed` that goes
    with it, which run in the thread that submits. One that raises is logged and does no other harm:
    `exports(snapshot)` before each commit; a failure of it goes to `on_failed` and the commit goes ahead;
    `on_committed(committed)` once a save is acknowledged, before older ones are deleted;
    `on_failed(name, error)` for whatever could not be done about checkpoint `name`;
    `release(snapshot)` exactly once for each submitted snapshot, when nothing reads its tensors any more.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        *,
        keep_last: int = 2,
        pinned: Iterable[str] = (),
        spared: Callable[[], Collection[str]] = frozenset,
        parent: str | None = None,
        max_waiting: int = 2,
        exports: Callable[[Snapshot], None] | None = None,
        on_committed: Callable[[Committed], None] = _ignore,
        on_failed: Callable[[str, Exception], None] = _ignore,
        release: Callable[[Snapshot], None] = _ignore,
    ) -> None:
        """`parent` names the checkpoint that the run goes on from; `pinned` names those that retention must spare,
        and `spared` is asked each time for more of them.

        Raises: UserError unless `keep_last` and `max_waiting` are at least 1.
        """
        if keep_last < 1 or max_waiting < 1:
            raise UserError(
                f"keep_last is {keep_last} and max_waiting {max_waiting}", remedy="use at least 1 for each of them"
            )
        self.newest_committed = parent
        self.last_cost_s: float | None = None  # what the newest commit took
        self._checkpoints = checkpoints
        self._keep_last = keep_last
        self._spared = spared
        self._max_waiting = max_waiting
        self._exports = exports or _ignore
        self._on_committed = on_committed
        self._on_failed = on_failed
        self._release = release
        self._is_good: dict[str, bool] = {}  # verdicts on committed checkpoints, each of which is read at most once
        self._changed = threading.Condition()  # guards the four below
        self._waiting: list[_Job] = []
        self._pinned = set(pinned)
        self._is_busy = False
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name="steadyolo-writer", daemon=True)
        self._thread.start()

    def submit(self, snapshot: Snapshot, *, pin: bool = False) -> None:
        """Have `snapshot` committed soon. Never waits for the disk, never raises because of storage.

        One that waits and is not pinned gives way to this one. `pin` also spares the checkpoint from retention, until
        `unpin`. Beyond `max_waiting` the oldest pinned one gives way too, and `on_failed` hears of it.
        """
        with self._changed:
            if self._is_closing:
                raise RuntimeError(f"snapshot {snapshot.name} came after the writer was closed")
            pins = [job for job in self._waiting if job.pin]
            replaced = [job for job in self._waiting if not job.pin]
            overflow = pins[: max(0, len(pins) + 1 - self._max_waiting)]
            self._waiting = [*pins[len(overflow) :], _Job(snapshot, pin)]
            if pin:
                self._pinned.add(snapshot.name)
            self._changed.notify_all()
        for job in overflow:
            self._report(
                job.snapshot.name,
                Transient(
                    f"checkpoint {job.snapshot.name} was not saved: {self._max_waiting} newer ones wait for the disk",
                    remedy="use a faster disk or save less often",
                ),
            )
        for job in (*replaced, *overflow):
            self._call("release", self._release, job.snapshot)

    def unpin(self, name: str) -> None:
        """Let retention delete checkpoint `name` when its time comes."""
        with self._changed:
            self._pinned.discard(name)

    @property
    def idle(self) -> bool:
        """True when nothing waits and nothing is being written."""
        with self._changed:
            return self._is_idle()

    def drain(self, timeout_s: float) -> bool:
        """Wait until everything submitted has been tried. Returns False when that takes longer than `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(self._is_idle, timeout_s)

    def close(self, *, timeout_s: float | None = None) -> bool:
        """Take no more, finish what waits, end the thread. Returns False if that takes longer than `timeout_s`.

        The thread never keeps a process from exiting, so a disk that hangs costs `timeout_s` and no more.
        """
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # --- in the writer's thread ---

    def _work(self) -> None:
        while (job := self._next_job()) is not None:
            try:
                self._save(job.snapshot)
            finally:
                with self._changed:
                    self._is_busy = False
                    self._changed.notify_all()

    def _next_job(self) -> _Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing)
            if not self._waiting:
                return None
            self._is_busy = True
            return self._waiting.pop(0)

    def _save(self, snapshot: Snapshot) -> None:
        try:
            self._try(snapshot.name, lambda: self._exports(snapshot))
            is_saved = self._try(snapshot.name, lambda: self._commit(snapshot))
        finally:
            self._call("release", self._release, snapshot)
        if is_saved:
            self._try(snapshot.name, self._delete_old)

    def _commit(self, snapshot: Snapshot) -> None:
        committed = self._checkpoints.commit(snapshot, parent=self.newest_committed)
        self.newest_committed = committed.name
        self.last_cost_s = committed.seconds
        self._is_good[committed.name] = True
        self._call("on_committed", self._on_committed, committed)

    def _delete_old(self) -> None:
        """Only checkpoints that verify count for retention, so that bad ones never push good ones out."""
        good = [name for name in self._checkpoints.committed() if self._verifies(name)]
        with self._changed:
            pinned = frozenset(self._pinned).union(self._spared())
        for name in plan_retention(good, keep_last=self._keep_last, pinned=pinned):
            self._checkpoints.delete(name)
            self._is_good.pop(name, None)

    def _verifies(self, name: str) -> bool:
        """Whether `name` is good. One that lost data is set aside; one of a newer format is left alone, unjudged."""
        if name not in self._is_good:
            self._is_good[name] = self._try(name, lambda: self._checkpoints.verify(name), on_loss=self._set_aside)
        return self._is_good[name]

    def _set_aside(self, name: str) -> None:
        self._checkpoints.set_aside(name)

    def _try(self, name: str, work: Callable[[], None], *, on_loss: Callable[[str], None] | None = None) -> bool:
        """Do `work` and say whether it went well. What goes wrong is reported and ends nothing else."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - the thread's edge
            self._report(name, error)
            if on_loss is not None and isinstance(error, DataLoss):
                on_loss(name)
            return False
        return True

    def _report(self, name: str, error: Exception) -> None:
        logger.info("checkpoint %s", name, exc_info=error)
        self._call("on_failed", self._on_failed, name, error)

    def _call(self, hook_name: str, hook: Callable[..., None], *values: object) -> None:
        try:
            hook(*values)
        except Exception:  # the hook's edge: whoever listens must not end the writer
            logger.exception("the writer's hook %s failed", hook_name)

    def _is_idle(self) -> bool:
        return not self._waiting and not self._is_busy

"""The thread of a worker that runs sessions: one batch after the other, and what may wait in between."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from steadyolo.serve.batching import Batcher

Job = TypeVar("Job")
Task = Callable[[], Any]


class Lane(Generic[Job]):
    """Calls `run` with batches, in a thread of its own, one at a time."""

    def __init__(self, run: Callable[[list[Job]], None]) -> None:
        self._run_jobs = run
        self._changed = threading.Condition()  # guards what follows
        self._batcher: Batcher[Job | Task] = Batcher()
        self._num_coming = 0

    def start(self) -> None:
        threading.Thread(target=self._run, name="lane", daemon=True).start()

    def expect(self) -> None:
        """Something is on its way: `put` or `gave_up` follows."""
        with self._changed:
            self._num_coming += 1

    def gave_up(self) -> None:
        """What was expected does not come."""
        with self._changed:
            self._num_coming -= 1
            self._changed.notify()

    def put(self, job: Job, kind: Hashable, *, is_behind: bool = False) -> None:
        """What was expected is here; where `is_behind`, others go first."""
        with self._changed:
            self._num_coming -= 1
            if is_behind:
                self._batcher.put_behind(job, now_s=time.monotonic())
            else:
                self._batcher.put(job, kind, now_s=time.monotonic())
            self._changed.notify()

    def between(self, task: Task) -> Any:
        """Do it when no job has to wait for more than this one; returns what it does when it is done."""
        done: Future[Any] = Future()

        def run() -> None:
            try:
                done.set_result(task())
            except BaseException as error:  # noqa: BLE001  # raised where the result is asked for
                done.set_exception(error)

        with self._changed:
            self._batcher.put_behind(run, now_s=time.monotonic())
            self._changed.notify()
        return done.result()

    def bucket(self, kind: Hashable, sizes: tuple[int, ...], *, hold_s: float) -> None:
        """From now on jobs of that kind go together in these sizes."""
        with self._changed:
            self._batcher.hold_s = hold_s
            self._batcher.buckets[kind] = sizes

    def _run(self) -> None:
        while True:
            with self._changed:
                now_s = time.monotonic()
                batch = self._batcher.take(now_s=now_s, num_coming=self._num_coming)
                if not batch:
                    self._changed.wait(self._batcher.asks_again_in_s(now_s=now_s))
                    continue
            if callable(batch[0]):
                batch[0]()
            else:
                self._run_jobs(batch)  # type: ignore[arg-type]  # tasks go alone

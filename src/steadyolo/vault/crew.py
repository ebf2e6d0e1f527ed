"""`Crew`: a few threads that do one thing together and never keep a process from exiting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar

_Result = TypeVar("_Result")
_Item = TypeVar("_Item")


class Crew:
    """Runs what is submitted in `num_threads` daemon threads, which inherit the niceness of the one that makes them.

    A `ThreadPoolExecutor` does the same, but a process that exits waits for its threads, and so for a store that
    accepts a request and never answers. Leaving waits for what is under way, and cancels what has not begun.
    """

    def __init__(self, num_threads: int, *, name: str, prepare: Callable[[], None] = lambda: None) -> None:
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._submitted: list[Future[Any]] = []
        self._prepare = prepare
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[[], _Result]) -> Future[_Result]:
        """Have `work` done soon. Its result, or what it raises, is the future's."""
        future: Future[_Result] = Future()
        self._submitted = [*(known for known in self._submitted if not known.done()), future]
        self._queue.put((future, work))
        return future

    def map(self, work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
        """What `work` returns for each of `items`, in their order. Raises what it raises."""
        for future in [self.submit(lambda item=item: work(item)) for item in items]:  # type: ignore[misc]
            yield future.result()

    def dismiss(self) -> None:
        """Cancel what has not begun, and let the threads end when they are done. Waits for nothing."""
        for future in self._submitted:
            future.cancel()
        for _ in self._threads:
            self._queue.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.dismiss()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        self._prepare()
        while (job := self._queue.get()) is not None:
            future, work = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - the thread's edge: whoever asks for the result gets it
                future.set_exception(error)

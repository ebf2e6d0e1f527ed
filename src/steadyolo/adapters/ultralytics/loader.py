"""`KeyedLoader`: batches from any cursor on, the same for any number of workers, or a rank's share of each."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from steadyolo.data.order import SampleOrder, share_of
from steadyolo.state.run_state import Cursor
from steadyolo.train.signals import STOP_SIGNALS

PREFETCH_BATCHES = 2  # per worker; more only takes memory, the step is longer than a batch is in the making


def num_window_images(order: SampleOrder, num_workers: int) -> int:
    """Decoded images that are kept, because mosaics of this order may choose them as partners."""
    slots = order.lookback + (1 + num_workers * (PREFETCH_BATCHES + 1)) * order.batch_size
    return min(slots, order.num_samples)


class _Positions:
    """Batches of positions from a cursor on, over all epochs, without end; of each, what `share` takes."""

    def __init__(self, order: SampleOrder, start: Cursor, share: Callable[[range], range]) -> None:
        self._order, self._start, self._share = order, start, share

    def __iter__(self) -> Iterator[list[int]]:
        cursor = self._start
        while True:
            if cursor.batch >= self._order.num_batches:
                cursor = Cursor(epoch=cursor.epoch + 1, batch=0)
            positions = self._order.positions(cursor)
            yield list(self._share(positions) or positions[:1])
            cursor = Cursor(epoch=cursor.epoch, batch=cursor.batch + 1)


def _start_worker(worker: int) -> None:
    """Leave signals to the main process: it decides when a run ends, and a worker that dies takes the loader along."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)


class KeyedLoader:
    """A training loader that Ultralytics' trainer takes for its own, and that starts at any cursor.

    Process `rank` of `num_ranks` gets its share of each batch. Where that is empty it gets the batch's first sample and
    `weight` is 0: it computes along, and its gradient does not count.
    """

    def __init__(
        self,
        dataset: Any,
        order: SampleOrder,
        *,
        num_workers: int,
        pin_memory: bool,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self.dataset = dataset
        self.order = order
        self.num_workers = num_workers
        self.batch_size = order.batch_size
        self.drop_last = False
        self.sampler = range(order.num_samples)  # upstream asks for its length only
        self._pin_memory = pin_memory
        self._share = partial(share_of, rank=rank, count=num_ranks)
        self._batches: Iterator[dict[str, Any]] | None = None
        self._next: Cursor | None = None

    def __len__(self) -> int:
        return self.order.num_batches

    def batch(self, cursor: Cursor) -> dict[str, Any]:
        """The batch at `cursor`, not yet on the device. Reading on in order costs nothing; a jump restarts workers."""
        if self._batches is None or cursor != self._next:
            self.close()
            self._batches = iter(self._loader(cursor))
        last = cursor.batch + 1 == self.order.num_batches
        self._next = Cursor(epoch=cursor.epoch + last, batch=0 if last else cursor.batch + 1)
        return next(self._batches)

    def weight(self, cursor: Cursor) -> float:
        """1 where this process has samples of the batch at `cursor`, 0 where it only computes along."""
        return float(len(self._share(self.order.positions(cursor))) > 0)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """One epoch of batches, the first one's: for callbacks that look at the data."""
        for batch in range(len(self)):
            yield self.batch(Cursor(epoch=0, batch=batch))

    def close(self) -> None:
        """End the workers."""
        shutdown = getattr(self._batches, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()  # as Ultralytics' own loader does: joins them before the interpreter ends
        self._batches = self._next = None

    def reset(self) -> None:
        """Start workers anew at the next batch."""
        self.close()

    def _loader(self, start: Cursor) -> DataLoader[Any]:
        return DataLoader(
            self.dataset,
            batch_sampler=_Positions(self.order, start, self._share),  # type: ignore[arg-type]  # an iterable is all it needs
            num_workers=self.num_workers,
            multiprocessing_context="fork" if self.num_workers else None,  # workers share the decoded window
            prefetch_factor=PREFETCH_BATCHES if self.num_workers else None,
            collate_fn=getattr(self.dataset, "collate_fn", None),
            worker_init_fn=_start_worker,
            pin_memory=self._pin_memory,
        )

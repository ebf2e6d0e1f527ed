"""Runs of several processes, each of which is a child that something can be done to."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from tests.faults.runs import Child, Outcome, Prepare, on_event

NUM_RANKS = 2
Each = Mapping[int, tuple[Prepare, ...]]  # what is done to which rank


class RankedRun:
    """`steadyolo WORDS` in two processes that meet through torchrun's variables, over the loopback interface."""

    def __init__(self, words: list[object], *, log: Path, prepare: Each | None = None) -> None:
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun's agent has it
        self.ranks = [
            Child(
                words,
                log=log.with_suffix(f".{rank}.log"),
                prepare=(partial(be_rank, rank, self._store.port), *(prepare or {}).get(rank, ())),
            )
            for rank in range(NUM_RANKS)
        ]

    def wait(self, timeout_s: float = 120.0) -> list[Outcome]:
        return [rank.wait(timeout_s) for rank in self.ranks]

    def expect(self, *exit_codes: int, timeout_s: float = 120.0) -> list[Outcome]:
        """Wait for the end of all ranks, with one exit code each, or the same for all."""
        wanted = exit_codes * NUM_RANKS if len(exit_codes) == 1 else exit_codes
        outcomes = self.wait(timeout_s)
        told = "\n".join(f"rank {rank}: {outcome.output[-3000:]}" for rank, outcome in enumerate(outcomes))
        assert tuple(outcome.exit_code for outcome in outcomes) == wanted, told
        return outcomes


def be_rank(rank: int, port: int) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(NUM_RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "GLOO_SOCKET_IFNAME": "lo",
    }


def note_samples(path: Path) -> None:
    """Write down which images each batch is made of: `epoch batch index`, a line each."""
    from steadyolo.adapters.ultralytics.dataset import KeyedClassificationDataset, KeyedDataset
    from steadyolo.adapters.ultralytics.loader import KeyedLoader

    read, at = KeyedLoader.batch, [(-1, -1)]

    def reading(loader: KeyedLoader, cursor: object) -> object:
        at[0] = (cursor.epoch, cursor.batch)  # type: ignore[attr-defined]
        return read(loader, cursor)  # type: ignore[arg-type]

    KeyedLoader.batch = reading  # type: ignore[assignment, method-assign]
    for kind in (KeyedDataset, KeyedClassificationDataset):
        kind.__getitem__ = _noting(kind.__getitem__, at, path)  # type: ignore[method-assign]


def _noting(get: object, at: list[tuple[int, int]], path: Path) -> object:
    def getting(dataset: object, position: int) -> object:
        if dataset._order is not None:  # type: ignore[attr-defined]
            epoch, batch = at[0]
            with path.open("a") as file:
                file.write(f"{epoch} {batch} {dataset._order.index(position)}\n")  # type: ignore[attr-defined]
        return get(dataset, position)  # type: ignore[operator]

    return getting


def note_bytes(path: Path) -> None:
    """Write down a digest of all that training changes, after each batch."""
    on_event("on_train_batch_end", partial(_note_bytes, path.with_suffix(".bytes")))


def _note_bytes(path: Path, trainer: Any) -> None:
    kept = hashlib.sha256()
    optimizer = [value for state in trainer.optimizer.state.values() for value in state.values()]
    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    states = [*trainer.model.state_dict().values(), *trainer.ema.ema.state_dict().values()]
    for tensor in (*states, *optimizer, *gradients):
        kept.update(tensor.detach().contiguous().numpy().tobytes())
    with path.open("a") as file:
        file.write(f"{kept.hexdigest()}\n")


def samples(path: Path) -> dict[tuple[int, int], list[int]]:
    """Indices of the images of each batch, by (epoch, batch)."""
    noted: dict[tuple[int, int], list[int]] = {}
    for line in path.read_text().splitlines():
        epoch, batch, index = map(int, line.split())
        noted.setdefault((epoch, batch), []).append(index)
    return noted


def short_limit(limit_s: float) -> None:
    """Take a rank for lost that says nothing for so long."""
    import steadyolo.train.ranks as ranks

    ranks._LIMIT_S, ranks._BEAT_S = limit_s, limit_s / 10

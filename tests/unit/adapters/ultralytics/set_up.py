"""Trainers that are set up in the test's own process: models, losses and loaders as a run has them, without running."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from steadyolo.adapters.ultralytics.arguments import known_arguments
from steadyolo.spec.run_spec import parse_pairs
from tests.faults.runs import small


@contextmanager
def trainer_for(
    task: str,
    folder: Path,
    boards: Callable[[str], Path],
    models: Callable[..., Path],
    *,
    family: str = "yolov8",
    **changes: object,
) -> Iterator[Any]:
    """A `SteadyTrainer` with its model and loaders, as right before the first batch."""
    from steadyolo.adapters.ultralytics.trainer import SteadyTrainer

    words = small(boards(task), models(task, family), folder / "run", **changes)
    arguments, ours = parse_pairs(words[1:], known_arguments())
    threads = torch.get_num_threads()
    trainer = SteadyTrainer(overrides={**arguments, **ours, "task": task, "mode": "train"})
    try:
        trainer._setup_train()
        yield trainer
    finally:
        if getattr(trainer, "train_loader", None) is not None:
            trainer.train_loader.close()
        trainer._lock.release()
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)

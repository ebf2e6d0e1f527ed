"""Where upstream's habits stand in the way of a run: each with its version and the condition for removing it."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from ultralytics.utils import LOGGER, nms

_UNLIMITED_S = 1e9


@contextlib.contextmanager
def patient_nms() -> Iterator[None]:
    """Let NMS finish. Upstream stops it at a wall-clock limit and drops the remaining images' boxes: on a busy machine
    the score of the same weights would change. Remove when `max_time_img` can be passed through a validator.
    """
    upstream = nms.non_max_suppression
    nms.non_max_suppression = partial(upstream, max_time_img=_UNLIMITED_S)
    try:
        yield
    finally:
        nms.non_max_suppression = upstream


@contextlib.contextmanager
def light_determinism(compiles: Any) -> Iterator[None]:
    """Let upstream switch torch's deterministic mode without torch importing its compiler for it, which takes seconds
    of each start (torch 2.14.1). Only the compiler reads what is left out. Remove when torch imports it lazily.
    """
    heavy = torch.use_deterministic_algorithms

    def light(mode: bool, *, warn_only: bool = False) -> None:
        torch._C._set_deterministic_algorithms(mode, warn_only=warn_only)

    if not compiles:
        torch.use_deterministic_algorithms = light
    try:
        yield
    finally:
        torch.use_deterministic_algorithms = heavy


@contextlib.contextmanager
def quiet_upstream() -> Iterator[None]:
    """Silence upstream's bars and tables while a display of ours shows the same."""
    level = LOGGER.level
    LOGGER.setLevel(logging.WARNING)
    try:
        yield
    finally:
        LOGGER.setLevel(level)


def hide_ranks(rank: int) -> None:
    """Let upstream take rank 0 for the only process, and every other one for one that writes and shows nothing.

    It reads the environment once, when it is imported, and would seed each rank differently, wait for the others where
    they do not come, and gather scores that only rank 0 has. Remove when it takes its rank from the trainer.
    """
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "ultralytics" and hasattr(module, "RANK"):
            module.RANK = rank or -1  # type: ignore[attr-defined]
        if name.partition(".")[0] == "ultralytics" and hasattr(module, "LOCAL_RANK"):
            module.LOCAL_RANK = -1  # type: ignore[attr-defined]
    if rank:
        LOGGER.setLevel(logging.ERROR)

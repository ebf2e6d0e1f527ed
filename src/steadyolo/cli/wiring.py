"""Puts the trainer together with what shows a run: the one place where adapters meet the display."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steadyolo.adapters.ultralytics.trainer import SteadyTrainer


def wired_trainer() -> type[SteadyTrainer]:
    """`SteadyTrainer` with the progress display watching its runs."""
    from steadyolo.adapters.ultralytics.trainer import SteadyTrainer
    from steadyolo.cli.display import Display

    if Display not in SteadyTrainer.watchers:
        SteadyTrainer.watchers.append(Display)
    return SteadyTrainer

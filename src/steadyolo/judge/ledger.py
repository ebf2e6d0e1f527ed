"""What is decided from scores: which epoch is best, and whether to stop. The one place that decides it."""

from __future__ import annotations

import math
from dataclasses import replace

from steadyolo.state.run_state import Ledger


def observe(ledger: Ledger, *, epoch: int, tick: int, fitness: float | None, patience: int) -> Ledger:
    """The ledger after epoch `epoch` (from 1) scored `fitness` (higher is better; None: it was not scored).

    `tick` names the save that will hold this epoch's weights. `patience` is epochs without improvement before stopping;
    0 never stops. While nothing has scored above zero, each epoch counts as an improvement, as in Ultralytics.
    """
    if fitness is None or not math.isfinite(fitness):
        return ledger
    best = ledger.best_fitness
    if best is None or fitness > best or best == 0.0:
        ledger = replace(ledger, best_fitness=fitness, best_epoch=epoch, best_tick=tick)
    return replace(ledger, stop=bool(patience) and epoch - ledger.best_epoch >= patience)

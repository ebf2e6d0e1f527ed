"""The moving average of a model's weights, which is what is scored and exported."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

_DECAY, _TAU = 0.9999, 2000  # Ultralytics' ModelEMA


class MovingAverage:
    """Moves the tensors of `average` towards the model's, by a share that falls with the number of updates.

    Source: `ModelEMA` of ultralytics 8.4.190, bit for bit; tensors of integers are left alone, as there.
    """

    def __init__(self, average: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> None:
        """Both are state dicts whose tensors are updated in place, for as long as this object lives."""
        names = [name for name, tensor in average.items() if tensor.is_floating_point()]
        self._average = [average[name] for name in names]
        self._model = [model[name] for name in names]

    def advance(self, num_updates: int) -> int:
        """Count one more update, and return how many there are now.

        One operation in place, which needs no memory: it is done, or nothing is.
        """
        decay = _DECAY * (1 - math.exp(-(num_updates + 1) / _TAU))
        torch._foreach_lerp_(self._average, self._model, 1 - decay)
        return num_updates + 1

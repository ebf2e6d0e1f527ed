"""The average of weights, against Ultralytics' own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from steadyolo.train.ema import MovingAverage


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("num_before", [0, 1, 1999, 10**6])
def test_it_is_ultralytics_average_bit_for_bit(num_before: int) -> None:
    from ultralytics.utils.torch_utils import ModelEMA

    model = network()
    theirs = ModelEMA(model, updates=num_before)
    ours = copy.deepcopy(theirs.ema)
    average, num_updates = MovingAverage(ours.state_dict(), model.state_dict()), num_before
    for _ in range(3):
        model(torch.randn(2, 3, 8, 8))
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        theirs.update(model)
        num_updates = average.advance(num_updates)
    assert num_updates == theirs.updates == num_before + 3
    for name, tensor in theirs.ema.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


def test_it_needs_no_memory() -> None:
    model = network()
    average = MovingAverage(copy.deepcopy(model).state_dict(), model.state_dict())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        average.advance(7)
    assert sum(abs(event.cpu_memory_usage) for event in profiled.events()) == 0

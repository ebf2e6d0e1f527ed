"""Weights of a model on a CUDA device are exported as those of one on the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from steadyolo.adapters.ultralytics.export import WeightExporter
from steadyolo.state.run_state import Cursor, RunState
from steadyolo.state.snapshot import Snapshot

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: nothing about CUDA is shown"),
]


def test_an_ema_on_the_device_is_exported(tmp_path: Path) -> None:
    ema = nn.Conv2d(3, 8, 3, bias=False, device="cuda")
    export = WeightExporter(ema, tmp_path, train_args={}, save_period=-1)
    closed = replace(RunState.fresh(), cursor=Cursor(epoch=1, batch=0), epochs_closed=1)
    tensors = {"ema": {"weight": ema.weight.detach().cpu()}}
    export(Snapshot(name="step-1", state=closed, tensors=tensors, made_from={}))
    exported = torch.load(tmp_path / "last.pt", weights_only=False)["model"].weight
    assert torch.equal(exported, ema.weight.detach().cpu().half())

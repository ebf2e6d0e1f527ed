"""What runs beside the loop starts no thread pool of its own: one more makes every operation of the loop slower."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from steadyolo.adapters.ultralytics.export import WeightExporter
from steadyolo.state.run_state import Cursor, RunState
from steadyolo.state.snapshot import Snapshot
from steadyolo.train.host_copy import HostCopies
from steadyolo.vault.tensors import encode

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts the threads of the process in /proc")

BIG = (256, 64, 3, 3)  # enough elements for torch to share them out


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def thread_ids() -> set[str]:
    return set(os.listdir("/proc/self/task"))


def num_threads_started_by(work: Callable[[], Any]) -> int:
    """How many threads of the process `work` starts, and leaves behind, in a thread beside the main one."""
    started: list[set[str]] = []

    def look_around() -> None:
        before = thread_ids()
        work()
        started.append(thread_ids() - before)

    thread = threading.Thread(target=look_around)
    thread.start()
    thread.join()
    return len(started[0])


def test_torch_itself_would_start_a_pool() -> None:
    big = torch.ones(BIG).to(memory_format=torch.channels_last)
    assert num_threads_started_by(lambda: torch.empty(BIG).copy_(big)) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_copying_and_encoding_start_none(dtype: torch.dtype) -> None:
    tensors = {"weight": torch.ones(BIG, dtype=dtype).to(memory_format=torch.channels_last)}
    before, during = thread_ids(), set[str]()
    copies = HostCopies()
    copies.begin({"model": tensors}, at_once=(), then=lambda _: during.update(thread_ids()))
    copies.wait()
    assert len(during - before) == 1, "the copying thread itself"
    assert num_threads_started_by(lambda: list(encode(tensors))) == 0


def test_exporting_starts_none(tmp_path: Path) -> None:
    model = nn.Conv2d(64, 256, 3, bias=False)
    model.weight.data[0, 0, 0, 0], model.weight.data[0, 0, 0, 1] = 1e6, -1e6
    export = WeightExporter(model, tmp_path, train_args={}, save_period=-1)
    closed = replace(RunState.fresh(), cursor=Cursor(epoch=1, batch=0), epochs_closed=1)
    tensors = {"ema": {"weight": model.weight.detach()}}
    snapshot = Snapshot(name="step-1", state=closed, tensors=tensors, made_from={})
    assert num_threads_started_by(lambda: export(snapshot)) == 0
    exported = torch.load(tmp_path / "last.pt", weights_only=False)["model"].weight
    assert torch.equal(exported, torch.nan_to_num(model.weight.detach().half()))

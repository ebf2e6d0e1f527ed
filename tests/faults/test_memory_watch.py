"""Memory that grows from epoch to epoch is warned of before a real limit of the process is reached."""

from __future__ import annotations

import json
import resource
from functools import partial
from pathlib import Path

import pytest

from steadyolo.adapters.memory.host import held_by_this_process
from tests.faults.runs import in_child

MIB = 2**20
ROOM = 600 * MIB


def grow(told: Path, *, step_bytes: int, num_epochs: int) -> None:
    """Hold `step_bytes` more at the close of each epoch, in a process that may have `ROOM` more in all."""
    import torch

    from steadyolo.adapters.memory.watch import MemoryWatch

    limit = held_by_this_process().data_bytes + ROOM
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    heard: list[str] = []
    watch = MemoryWatch(torch.device("cpu"), lambda event: heard.append(event.kind))
    held, is_out = [], False
    for epoch in range(1, num_epochs + 1):
        try:
            held.append(bytearray(b"1") * step_bytes)
        except MemoryError:
            is_out = True
            break
        watch.close_epoch(epoch, num_epochs_left=num_epochs - epoch)
    told.write_text(json.dumps({"heard": heard, "is_out": is_out, "epochs": len(held)}))


def test_a_leak_is_warned_of_before_memory_is_out(tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    in_child(partial(grow, told, step_bytes=50 * MIB, num_epochs=50), log=tmp_path / "log").expect(0)
    found = json.loads(told.read_text())
    assert found["is_out"], "memory sufficed, so this proves nothing"
    assert found["heard"].count("memory_measured") == found["epochs"]
    first = found["heard"].index("memory_growing")
    epochs_before = found["heard"][:first].count("memory_measured")
    assert epochs_before <= found["epochs"] - 3, "the warning came too late to do anything"
    assert found["heard"].count("memory_growing") <= 5, "one warning is repeated only as the end draws near"


@pytest.mark.parametrize("step_bytes", [0, 1 * MIB])
def test_what_ends_before_the_limit_is_not_warned_of(step_bytes: int, tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    in_child(partial(grow, told, step_bytes=step_bytes, num_epochs=30), log=tmp_path / "log").expect(0)
    found = json.loads(told.read_text())
    assert not found["is_out"]
    assert found["heard"] == ["memory_measured"] * 30

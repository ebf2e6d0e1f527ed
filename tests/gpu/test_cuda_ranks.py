"""Two GPUs train one run: what two processes on a CPU show, with NCCL between them."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import torch

from tests.faults.runs import Child, checkpoints, differing, digests, state_of
from tests.faults.uninterrupted import Reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two CUDA devices here: nothing about them is shown"),
]


def test_a_run_on_two_devices_is_resumed_exactly(reference: Reference, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for run in (whole, stopped):
        child = Child(reference.words(run, device="0,1", epochs=3), log=tmp_path / f"{run.name}.log")
        if run is stopped:
            while len(checkpoints(run)) < 2 and child.is_running:
                time.sleep(0.01)
            child.send(signal.SIGTERM)
        child.wait().expect(75 if run is stopped else 0)
    assert state_of(checkpoints(stopped)[-1])["epochs_closed"] < 3
    Child(["resume", stopped], log=tmp_path / "resumed.log").wait().expect(0)
    assert differing(digests(stopped), digests(whole)) == []

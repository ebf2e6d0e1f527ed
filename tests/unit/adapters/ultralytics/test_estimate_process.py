"""Estimates made in another process are the same, and leave nothing behind in this one."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest

from steadyolo.adapters.ultralytics.estimate import estimate
from steadyolo.adapters.ultralytics.estimate_process import EstimateProcess
from steadyolo.errors import SteadyError, UserError
from steadyolo.plan.fit import Fit
from steadyolo.plan.memory import Workload

WORKLOAD = Workload(
    model="yolov8n.yaml",
    task="detect",
    imgsz=64,
    fit=Fit(num_images=2),
    compute="fp32",
    device="cpu",
    optimizer="SGD",
    most_boxes=5,
)


def test_it_answers_as_the_function_does_and_ends() -> None:
    with EstimateProcess() as beside:
        assert beside(WORKLOAD) == estimate(WORKLOAD)
        with pytest.raises(UserError, match="nothing-like-this"):
            beside(replace(WORKLOAD, model="nothing-like-this.yaml"))
        two = replace(WORKLOAD, fit=Fit(num_images=4))
        assert beside(two).num_bytes > beside(WORKLOAD).num_bytes, "an error ends nothing"
        pid = beside.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_one_that_is_killed_is_told() -> None:
    with EstimateProcess() as beside:
        os.kill(beside.pid, signal.SIGKILL)
        with pytest.raises(SteadyError, match="ended with code -9"):
            beside(WORKLOAD)

"""The weights themselves, as a session: what runtimes are measured by."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import steadyolo
from steadyolo.adapters.runtimes.opening import open_session
from steadyolo.adapters.ultralytics.comparing import TOLERANCES
from steadyolo.adapters.ultralytics.reference import ReferenceSession
from steadyolo.errors import UserError
from steadyolo.serve.answers import Layout, largest_differences
from steadyolo.serve.golden import Golden
from steadyolo.serve.served_model import ServedModel, open_served
from steadyolo.serve.session import SessionSettings
from tests.conftest import TASKS
from tests.served import drawn

Served = Callable[..., ServedModel]
Weights = Callable[..., Path]


@pytest.fixture
def beside(served: Served, weights: Weights, tmp_path: Path) -> Callable[[str], ServedModel]:
    """A served model with its weights beside it."""

    def made(task: str) -> ServedModel:
        folder = tmp_path / "m.served"
        shutil.copytree(served(task).folder, folder, ignore=shutil.ignore_patterns("compiled"))
        shutil.copy(weights(task), tmp_path / "m.pt")
        return open_served(folder)

    return made


@pytest.mark.parametrize("task", TASKS)
def test_it_answers_as_onnx_runtime_does(beside: Callable[[str], ServedModel], task: str) -> None:
    model = beside(task)
    reference = ReferenceSession(model, SessionSettings(runtime="torch"))
    Golden(model).check(reference)
    given = open_session(model, SessionSettings(runtime="onnxruntime"))
    layout, images = Layout.of(model), drawn(2)
    differences = largest_differences(layout.parts(reference.run(images)), layout.parts(given.run(images)))
    assert differences
    assert all(value <= TOLERANCES[name] for name, value in differences.items()), differences


def test_a_detector_over_it(beside: Callable[[str], ServedModel]) -> None:
    model = beside("detect")
    image = np.ascontiguousarray((drawn(1)[0, ::-1, :120].transpose(1, 2, 0) * 255).astype(np.uint8))
    detector = steadyolo.Detector(model.folder, runtime="torch")
    assert detector.session.label == "torch cpu fp32"
    (mine, other) = (
        one(image, conf=0.05) for one in (detector, steadyolo.Detector(model.folder, runtime="onnxruntime"))
    )
    assert len(mine), "nothing found, so nothing was compared"
    np.testing.assert_allclose(mine.boxes.data, other.boxes.data, atol=0.1)
    detector.close()
    with pytest.raises(UserError, match="closed"):
        detector(image)


def test_it_is_refused_without_the_very_weights(beside: Callable[[str], ServedModel]) -> None:
    model = beside("detect")
    weights = model.folder.with_suffix(".pt")
    for settings in ({"device": "cuda:0"}, {"precision": "bf16"}):
        with pytest.raises(UserError, match="fp32 on the processor"):
            ReferenceSession(model, SessionSettings(runtime="torch", **settings))
    weights.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(UserError, match="was changed since"):
        ReferenceSession(model, SessionSettings(runtime="torch"))
    weights.unlink()
    with pytest.raises(UserError, match=r"m\.pt is not beside it"):
        ReferenceSession(model, SessionSettings(runtime="torch"))
    under_its_name = model.folder.with_name("best.pt")
    named = replace(model, source=replace(model.source, name="s3://bucket/runs/best.pt", sha256="0"))
    under_its_name.write_bytes(b"other")
    with pytest.raises(UserError, match=r"best\.pt was changed since"):
        ReferenceSession(named, SessionSettings(runtime="torch"))


def test_no_server_opens_it(served: Served) -> None:
    with pytest.raises(UserError, match="serves nothing"):
        open_session(served("detect"), SessionSettings(runtime="torch"))
    words = ["-m", "steadyolo.cli.main", "serve", str(served("detect").folder), "--runtime", "torch"]
    ended = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 2
    assert "invalid choice: 'torch'" in ended.stderr

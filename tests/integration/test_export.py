"""`steadyolo export` as it is typed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from steadyolo.adapters.ultralytics.export_process import ExportRequest, export_model
from steadyolo.cli.export import export as export_command
from steadyolo.cli.models import chosen_weights, find_model
from steadyolo.errors import UserError
from steadyolo.serve.served_model import Source, digest_of, open_served
from steadyolo.vault.folder_store import FolderStore
from tests.faults.stores import name_of, run_folder, upload_all

SOURCE = Source(name="m.pt", sha256="")
PROGRAM = "from steadyolo.cli.main import run; run()"


def export(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, "export", *map(str, words)]
    environment = {**os.environ, "STEADYOLO_CACHE": str(cwd / "cache")}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def test_weights_are_exported_beside_themselves(weights: Callable[..., Path], tmp_path: Path) -> None:
    shutil.copy(weights("detect"), tmp_path / "m.pt")
    done = export("m.pt", "format=onnx", "imgsz=96,128", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    model = open_served(tmp_path / "m.served")
    assert (told["version"], told["folder"]) == (model.version, "m.served")
    assert (model.name, model.shape_px, set(model.graphs)) == ("m", (96, 128), {"onnx"})
    assert model.source.sha256 == digest_of(tmp_path / "m.pt")
    assert find_model(tmp_path / "m.pt") == model


def test_a_run_in_a_store_is_exported_to_a_store(weights: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "train"
    checkpoints = run_folder(folder, 1, 2)
    shutil.copy(weights("detect"), folder / "weights" / "best.pt")
    upload_all(FolderStore(tmp_path / "store"), folder, checkpoints, tiers={})
    url = f"file://{tmp_path}/models/line.served"
    done = export(f"file://{tmp_path}/store/train", "format=onnx", f"out={url}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    os.environ["STEADYOLO_CACHE"] = str(tmp_path / "cache")
    try:
        model = find_model(url)
    finally:
        del os.environ["STEADYOLO_CACHE"]
    assert (model.name, model.source.run) == ("line", "train")
    assert model.source.sha256 == digest_of(folder / "weights" / "best.pt")


@pytest.mark.parametrize(
    ("words", "saying"),
    [
        (("nothing.pt",), "nothing.pt is not there"),
        (("m.pt", "format=tflite"), "format=tflite is unknown"),
        (("m.pt", "imgsz=big"), "imgsz=big is no size"),
        (("m.pt", "nms=True"), "never in it"),
        (("m.pt", "step=last"), "step=last is no step"),
        (("m.pt", "out=elsewhere"), "out=elsewhere does not end in .served"),
        (("m.pt", "out=file:///somewhere/else"), "does not name a served model"),
        (("m.pt", "epochs=3"), "unknown argument 'epochs'"),
        ((".",), "has no weights/best.pt"),
    ],
)
def test_what_cannot_be_exported_is_refused(words: tuple[str, ...], saying: str, working_folder: Path) -> None:
    (working_folder / "m.pt").write_bytes(b"not weights")
    with pytest.raises(UserError, match=re.escape(saying)):
        export_command(words[0], list(words[1:]))
    assert [path.name for path in working_folder.iterdir()] == ["m.pt"]


def test_a_refusal_of_the_other_process_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(b"not weights")
    done = export("m.pt", cwd=tmp_path)
    assert done.returncode == 2
    assert "m.pt is not a model checkpoint" in done.stderr
    assert "remedy:" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


def test_an_engine_takes_a_gpu(weights: Callable[..., Path], tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="needs an NVIDIA GPU"):
        export_model(ExportRequest(weights=weights("detect"), forms=("onnx", "engine")), tmp_path / "m.served", SOURCE)
    assert list(tmp_path.iterdir()) == []


def test_a_run_says_which_step_its_best_weights_are_of(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    run_folder(folder, 1, 2)
    with chosen_weights(str(folder)) as chosen:
        assert chosen.source.run == "train"
        assert chosen.folder == folder / "weights" / "best.served"
    with chosen_weights(str(folder), step=1) as chosen:
        assert chosen.tensors == folder / "steadyolo" / "checkpoints" / name_of(1) / "ema.safetensors"
        assert (chosen.source.name, chosen.source.step) == (name_of(1), 1)

"""What a name of a served model means, and what is said to one that means none."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from steadyolo.errors import DataLoss, UserError
from steadyolo.serve.finding import find_served
from steadyolo.serve.served_model import ServedModel


@pytest.fixture
def folder(served: Callable[..., ServedModel], weights: Callable[..., Path], tmp_path: Path) -> Path:
    """A run whose best weights were exported."""
    (tmp_path / "run" / "weights").mkdir(parents=True)
    shutil.copy(weights("detect"), tmp_path / "run" / "weights" / "best.pt")
    shutil.copytree(served("detect").folder, tmp_path / "run" / "weights" / "best.served")
    return tmp_path / "run" / "weights" / "best.served"


def test_every_way_to_name_it(folder: Path) -> None:
    for name in (folder, str(folder), folder.with_suffix(".pt"), folder.parents[1], folder.with_suffix("")):
        assert find_served(name).folder == folder


def test_the_folder_one_is_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for here in (folder, folder.parents[1]):
        monkeypatch.chdir(here)
        assert find_served(".").folder.resolve() == folder
    (folder.parents[2] / "empty").mkdir()
    monkeypatch.chdir(folder.parents[2] / "empty")
    with pytest.raises(UserError, match="neither a served model nor a run"):
        find_served(".")


def refused(name: Path, saying: str, remedy: str) -> None:
    with pytest.raises(UserError, match=re.escape(saying)) as refusal:
        find_served(name)
    assert remedy in refusal.value.remedy


def test_what_is_none_is_told_what_it_is(folder: Path, tmp_path: Path) -> None:
    refused(folder / "model.onnx", "is a graph without the manifest", str(folder))
    refused(tmp_path, "neither a served model nor a run", "whose name ends in .served")
    refused(tmp_path / "nothing", "is not there", "name a served model")
    refused(tmp_path / "nothing.pt", "is not there", "check the name")
    shutil.rmtree(folder)
    refused(folder.with_suffix(".pt"), "are not served as they are", f"steadyolo export {folder.with_suffix('.pt')}")
    refused(folder.parents[1], "is a run that has not been exported", f"steadyolo export {folder.parents[1]}")


def test_weights_that_were_changed_since_are_told(folder: Path) -> None:
    weights = folder.with_suffix(".pt")
    os.utime(weights)  # copied again: newer, and the same
    assert find_served(weights).folder == folder
    weights.write_bytes(weights.read_bytes() + b"?")
    refused(weights, "was changed since", f"steadyolo export {weights}")


def test_what_is_not_as_it_was_exported_is_refused(folder: Path) -> None:
    graph = folder / "model.onnx"
    data = graph.read_bytes()
    graph.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DataLoss, match="changed since it was exported"):
        find_served(folder)
    assert find_served(folder, verify=False).folder == folder, "it is the reading that finds it"
    graph.write_bytes(data[:-1])
    with pytest.raises(DataLoss, match=rf"{len(data) - 1} bytes, and had {len(data)}"):
        find_served(folder)
    graph.unlink()
    with pytest.raises(DataLoss, match="is missing"):
        find_served(folder)


@pytest.mark.parametrize(
    ("change", "saying"),
    [
        ({"format": 2}, "is of format 2; this steadyolo knows 1"),
        ({"task": "sing"}, "is not the manifest of a served model"),
        ({"more": 1}, "is not the manifest of a served model"),
        ({"files": {"../model.onnx": {"num_bytes": 1, "sha256": ""}}}, "is not the manifest of a served model"),
    ],
)
def test_manifests_of_another_kind_are_refused(folder: Path, change: dict[str, object], saying: str) -> None:
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **change}))
    with pytest.raises(UserError, match=saying):
        find_served(folder)

"""Served models in stores: whole and verified, or refused; replaced without a moment in which there is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from steadyolo.errors import DataLoss, UserError
from steadyolo.serve.keeping import adopt_served, staging
from steadyolo.serve.served_model import ServedModel
from steadyolo.serve.stored import fetch_served, send_served
from steadyolo.testing.memory_store import MemoryStore
from steadyolo.vault.patience import Patience

NAME = "line.served"
AT_ONCE = Patience(0.0)


def another(model: ServedModel, folder: Path, note: str) -> ServedModel:
    """The same files with another manifest: another version."""
    values = model.to_manifest()
    values["made_with"] = {"note": note}
    with staging(folder) as staged:
        for file in model.files:
            shutil.copy(model.folder / file, staged / file)
        return adopt_served(staged, folder, json.dumps(values).encode())


def test_what_was_sent_is_fetched_once(served: Callable[..., ServedModel], tmp_path: Path) -> None:
    model, store = served("detect"), MemoryStore()
    with pytest.raises(UserError, match=r"is not a served model"):
        fetch_served(store, NAME, tmp_path, patience=AT_ONCE)
    send_served(store, NAME, model, patience=AT_ONCE)
    found = fetch_served(store, NAME, tmp_path, patience=AT_ONCE)
    assert replace(found, folder=model.folder) == model
    for key in [key for key in store.objects if not key.endswith("manifest.json")]:
        store.delete(key)
    assert fetch_served(store, NAME, tmp_path, patience=AT_ONCE) == found


def test_a_new_version_takes_the_place_of_the_old_one(served: Callable[..., ServedModel], tmp_path: Path) -> None:
    store = MemoryStore()
    models = [another(served("detect"), tmp_path / f"{n}.served", str(n)) for n in range(5)]
    for model in models:
        send_served(store, NAME, model, patience=AT_ONCE)
        assert fetch_served(store, NAME, tmp_path / "cache", patience=AT_ONCE).version == model.version
    kept = {key.split("/")[1] for key in store.objects}
    assert kept == {"manifest.json", models[-1].version, models[-2].version}
    assert len(list((tmp_path / "cache").glob("*/*"))) == 3


def test_what_is_damaged_in_the_store_is_refused(served: Callable[..., ServedModel], tmp_path: Path) -> None:
    model, store = served("detect"), MemoryStore()
    send_served(store, NAME, model, patience=AT_ONCE)
    key = f"{NAME}/{model.version}/model.onnx"
    good = store.get(key).data
    store.put(key, bytes(good[:-1]) + b"?")
    with pytest.raises(DataLoss, match="is not what was sent"):
        fetch_served(store, NAME, tmp_path, patience=AT_ONCE)
    store.delete(key)
    with pytest.raises(DataLoss, match="is not there"):
        fetch_served(store, NAME, tmp_path, patience=AT_ONCE)
    assert not list(tmp_path.rglob("manifest.json")), "nothing of it counts here"
    store.put(key, good)
    found = fetch_served(store, NAME, tmp_path, patience=AT_ONCE)
    (found.folder / "model.onnx").write_bytes(b"?")
    assert fetch_served(store, NAME, tmp_path, patience=AT_ONCE) == found, "what is no good here is fetched again"


def test_damaged_files_are_not_sent(served: Callable[..., ServedModel], tmp_path: Path) -> None:
    folder, store = tmp_path / NAME, MemoryStore()
    shutil.copytree(served("detect").folder, folder)
    (folder / "golden.png").write_bytes(b"?")
    with pytest.raises(DataLoss, match=r"golden\.png"):
        send_served(store, NAME, replace(served("detect"), folder=folder), patience=AT_ONCE)
    assert not store.objects

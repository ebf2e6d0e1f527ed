"""Every runtime keeps the promises of `Session`, and `auto` takes the fastest of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from steadyolo.adapters.runtimes import cache, openvino
from steadyolo.adapters.runtimes.choosing import choose
from steadyolo.adapters.runtimes.opening import open_session
from steadyolo.adapters.runtimes.openvino import OpenVinoSession
from steadyolo.errors import UserError
from steadyolo.serve.served_model import ServedModel
from steadyolo.serve.session import Session, SessionSettings

Served = Callable[..., ServedModel]
RUNTIMES = ("openvino", "onnxruntime")


@pytest.fixture
def model(served: Served, tmp_path: Path) -> ServedModel:
    """One of its own: what is compiled is kept beside it."""
    folder = tmp_path / "own.served"
    shutil.copytree(served("detect").folder, folder, ignore=shutil.ignore_patterns("compiled"))
    return replace(served("detect"), folder=folder)


def images(num_images: int = 1, height_px: int = 160, width_px: int = 160) -> np.ndarray:
    return np.random.default_rng(height_px).random((num_images, 3, height_px, width_px), np.float32)


@pytest.mark.parametrize("shape", [(1, 160, 160), (1, 96, 160), (2, 160, 128)], ids=str)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_outputs_are_one_anothers_and_the_callers_to_keep(
    model: ServedModel, runtime: str, shape: tuple[int, int, int]
) -> None:
    session: Session = open_session(model, SessionSettings(runtime=runtime, precision="fp32"))
    other = open_session(model, SessionSettings(runtime="onnxruntime"))
    assert session.label == f"{runtime} cpu fp32"
    (output,) = session.run(images(*shape))
    kept = output.copy()
    np.testing.assert_allclose(output, other.run(images(*shape))[0], atol=2e-3)
    session.run(1 - images(*shape))
    np.testing.assert_array_equal(output, kept)
    session.close()
    session.close()
    with pytest.raises(UserError, match="closed"):
        session.run(images(*shape))


@pytest.mark.parametrize(
    "wrong",
    [
        images()[0],
        images()[:, :2],
        images().astype(np.float64),
        images(1, 150, 160),
        images(1, 0, 160),
        images()[:0],
    ],
    ids=["one dimension less", "two channels", "float64", "no multiple of 32", "no height", "no image"],
)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_other_shapes_are_refused(model: ServedModel, runtime: str, wrong: np.ndarray) -> None:
    session = open_session(model, SessionSettings(runtime=runtime))
    with pytest.raises(UserError, match="do not fit the model"):
        session.run(wrong)
    session.run(images())


@pytest.mark.parametrize(
    "settings",
    [
        {"runtime": "tensorflow"},
        {"runtime": "onnxruntime", "device": "cuda:7"},
        {"runtime": "tensorrt", "device": "cuda"},
        {"runtime": "onnxruntime", "device": "npu"},
        {"runtime": "onnxruntime", "precision": "bf16"},
        {"runtime": "openvino", "device": "cuda:0"},
        {"runtime": "openvino", "precision": "int3"},
        {"runtime": "auto", "device": "cuda:7"},
    ],
    ids=str,
)
def test_what_is_not_here_is_refused_never_replaced(model: ServedModel, settings: dict[str, str]) -> None:
    with pytest.raises(UserError):
        open_session(model, SessionSettings(**settings))


def test_compiled_graphs_are_kept_and_torn_ones_compiled_again(model: ServedModel) -> None:
    expected = OpenVinoSession(model, SessionSettings()).run(images())[0]
    (blob,) = (model.folder / "compiled").rglob("*.blob")
    model.graph("onnx").unlink()
    for graph in model.graphs.values():
        (model.folder / graph).unlink(missing_ok=True)
    found = OpenVinoSession(model, SessionSettings()).run(images())[0]  # from what was kept: there is nothing else
    np.testing.assert_array_equal(found, expected)
    content = blob.read_bytes()
    for torn in (
        content[:-1],
        content[: len(content) // 2],
        b"",
        content[:99] + bytes([content[99] ^ 1]) + content[100:],
    ):
        blob.unlink()
        blob.write_bytes(torn)
        with pytest.raises(Exception, match=r"model\.(xml|onnx)"):  # so it wants to compile, and has nothing to
            OpenVinoSession(model, SessionSettings()).run(images())


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "STEADYOLO_CACHE"])
def test_a_folder_that_cannot_be_written_costs_only_time(
    model: ServedModel, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STEADYOLO_CACHE", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "home"))
    (model.folder / "compiled").write_text("in the way")
    OpenVinoSession(model, SessionSettings()).run(images())
    assert list((tmp_path / "home").rglob("*.blob")), "the user's own cache is next"
    session = OpenVinoSession(model, SessionSettings(cache=Path("/proc/nowhere")))
    assert session.run(images())[0].shape[0] == 1


def test_shapes_are_not_kept_without_end(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "MOST_SHAPES", 3)
    session = OpenVinoSession(model, SessionSettings())
    (expected,) = session.run(images())
    session.run(images())
    for width_px in (32, 64, 96, 128):
        session.run(images(1, 32, width_px))
    assert len(session._shapes) == 3
    assert (1, 3, 160, 160) in session._shapes, "what is used most stays"
    np.testing.assert_array_equal(session.run(images())[0], expected)


def test_a_cache_keeps_what_was_used_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LIMIT_BYTES", 250)
    for number, version in enumerate(("v1", "v1", "v2")):
        graphs = cache.CompiledGraphs(tmp_path, version)
        path = graphs.path(number)
        graphs.write(path, bytes([number]) * 80)
        os.utime(path, (number, number))
    assert len(list(tmp_path.rglob("*.blob"))) == 2
    assert cache.CompiledGraphs(tmp_path, "v1").read(cache.CompiledGraphs(tmp_path, "v1").path(0)) is None
    kept = cache.CompiledGraphs(tmp_path, "v1").path(1)
    mapped = cache.CompiledGraphs(tmp_path, "v1").read(kept)  # used: it stays now, and v2's goes
    assert mapped is not None
    cache.CompiledGraphs(tmp_path, "v3").write(tmp_path / "v3" / "new.blob", b"3" * 80)
    assert {path.parent.name for path in tmp_path.rglob("*.blob")} == {"v1", "v3"}
    kept.unlink()
    assert mapped.tobytes() == bytes([1]) * 80, "what is in use is not lost with its file"


def test_auto_measures_once_and_keeps_what_it_measured(model: ServedModel) -> None:
    opened: list[str] = []

    def open_noted(one: ServedModel, settings: SessionSettings) -> Session:
        opened.append(settings.runtime)
        return open_session(one, settings)

    choice = choose(model, SessionSettings(), open_noted)
    assert opened == ["openvino", "onnxruntime"]
    assert choice.runtime == min(choice.run_ms, key=lambda label: choice.run_ms[label]).split()[0]
    assert choose(model, SessionSettings(), open_noted) == choice
    assert len(opened) == 2
    assert choose(model, SessionSettings(num_threads=1), open_noted).run_ms != choice.run_ms
    (kept,) = (
        path for path in model.folder.rglob("choice-*.json") if json.loads(path.read_text())["run_ms"] == choice.run_ms
    )
    kept.write_text("{")
    again = choose(model, SessionSettings(), open_noted)
    assert len(opened) == 6, "what cannot be read is measured again"
    assert open_session(model, SessionSettings()).label.startswith(again.runtime)


def test_onnx_runtime_tells_nobody_that_it_is_used(model: ServedModel) -> None:
    """Where its telemetry is on it keeps a number below the home folder, and complains where it cannot."""
    code = f"""
from pathlib import Path
from steadyolo.adapters.runtimes.opening import open_session
from steadyolo.serve.served_model import open_served
from steadyolo.serve.session import SessionSettings
open_session(open_served(Path({str(model.folder)!r})), SessionSettings(runtime="onnxruntime"))
"""
    nowhere = {"HOME": "/proc/nowhere", "XDG_CACHE_HOME": "/proc/nowhere"}
    ended = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **nowhere}, capture_output=True, text=True, check=True
    )
    assert ended.stderr == ""


def test_openvino_tells_nobody_that_it_is_used(model: ServedModel, tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
import numpy as np
from steadyolo.adapters.runtimes.conversion import open_openvino, write_openvino
xml = Path({str(tmp_path)!r}) / "model.xml"
write_openvino(Path({str(model.graph("onnx"))!r}), xml)
outputs = open_openvino(xml)(np.zeros((1, 3, *{model.shape_px!r}), np.float32))
assert outputs and all(np.isfinite(one).all() for one in outputs)
print([name for name, one in sys.modules.items() if name.startswith("openvino_telemetry") and one is not None])
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]", "its telemetry sends from a process that it forks"


def test_openvino_is_loaded_without_its_package_and_the_package_still_loads() -> None:
    code = """
import sys
from steadyolo.adapters.runtimes.openvino import bindings
core = bindings().Core()
assert "openvino" not in sys.modules and not any(name.startswith("openvino.opset") for name in sys.modules)
import openvino
assert openvino.Core().available_devices and openvino.opset13
"""
    subprocess.run([sys.executable, "-c", code], check=True)

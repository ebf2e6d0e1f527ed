"""What tests of training share: a quiet Ultralytics, small board data sets, and models small enough for seconds."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.faults.uninterrupted import Reference
from tests.served import served, weights
from tests.servers.fixtures import (
    aws,
    azurite,
    fault_proxy,
    fresh_bucket,
    own_seaweed,
    prefix,
    replica,
    s3_url,
    seaweed,
)

__all__ = [
    "aws",
    "azurite",
    "fault_proxy",
    "fresh_bucket",
    "own_seaweed",
    "prefix",
    "replica",
    "s3_url",
    "seaweed",
    "served",
    "weights",
]

# Before Ultralytics is imported anywhere, in children too: nothing of the user's is read or written, nothing fetched.
_SETTINGS = tempfile.TemporaryDirectory(prefix="steadyolo-tests-")
os.environ |= {"YOLO_CONFIG_DIR": _SETTINGS.name, "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
os.environ["STEADYOLO_METADATA"] = "off"  # a test on a cloud's machine is no run of that cloud's

# How long an example takes says nothing on a shared machine; what it shows does.
settings.register_profile("steadyolo", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steadyolo")

TASKS = ("detect", "segment", "pose", "obb", "classify")
SUFFIXES = {"detect": "", "segment": "-seg", "pose": "-pose", "obb": "-obb", "classify": "-cls"}
NUM_TRAIN, NUM_VAL = 14, 5  # with batches of 4: the last one of an epoch is smaller


@pytest.fixture(scope="session", autouse=True)
def _children() -> None:
    """Children are forked from a process that has everything imported: a start takes milliseconds, not seconds."""
    import multiprocessing

    wanted = ["__main__", "safetensors.torch", "steadyolo.vault.writer", "steadyolo.adapters.ultralytics.trainer"]
    wanted += ["torch._inductor", "matplotlib.pyplot"]  # what a run imports only then: half of a start
    multiprocessing.get_context("forkserver").set_forkserver_preload(wanted)


@pytest.fixture(scope="session")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """What `data=` is for a task: a few small boards. Tests that change a data set make a copy."""
    from steadyolo.data.boards import write_boards

    folder = tmp_path_factory.mktemp("boards")

    @cache
    def made(task: str) -> Path:
        size_px = (48, 48) if task == "classify" else (96, 96)
        return write_boards(folder / task, task=task, num_train=NUM_TRAIN, num_val=NUM_VAL, size_px=size_px, seed=3)

    return made


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A model yaml for a task: Ultralytics' own of a family, an eighth as wide as its smallest."""
    folder = tmp_path_factory.mktemp("models")

    @cache
    def made(task: str, family: str = "yolov8") -> Path:
        from ultralytics.utils import ROOT

        name = f"{family}{SUFFIXES[task]}"
        text = next((ROOT / "cfg" / "models").rglob(f"{name}.yaml")).read_text(encoding="utf-8")
        small, found = re.subn(r"(\n +n: \[[^,]+,)[^,]+,", r"\1 0.0625,", text)
        assert found == 1, f"{name}.yaml has no scale n"
        if "reg_max:" not in small:
            small = f"reg_max: 2\n{small}"  # boxes start out as small as a board's defects, so that they are matched
        path = folder / f"{name.replace(family, family + 'n')}.yaml"
        path.write_text(small, encoding="utf-8")
        return path

    return made


@pytest.fixture(scope="session")
def reference(
    tmp_path_factory: pytest.TempPathFactory, boards: Callable[[str], Path], models: Callable[..., Path]
) -> Reference:
    """Starts small runs, and compares them with ones that nothing happened to."""
    return Reference(tmp_path_factory.mktemp("uninterrupted"), boards, models)


@pytest.fixture
def working_folder(tmp_path: Path) -> Iterator[Path]:
    """The test runs in a folder of its own, so that what is written to a relative path is thrown away."""
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)

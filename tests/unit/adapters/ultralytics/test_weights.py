"""Which foreign `.pt` files are admitted. Nothing that they hold is run to find out."""

from __future__ import annotations

import builtins
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from steadyolo.adapters.ultralytics.weights import check_weights, task_of
from steadyolo.errors import UserError
from tests.conftest import TASKS


class Call:
    """Pickles to `function(*arguments)`."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._reduced = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self._reduced


class Import:
    """Pickles to a name that need not exist here."""

    def __init__(self, module: str, name: str, *arguments: object) -> None:
        self.module, self.name, self.arguments = module, name, arguments


class Writer(pickle._Pickler):  # type: ignore[name-defined]  # the one in Python can be told what to write
    """Writes `Import` as a global by name, called with its arguments."""

    def save(self, obj: object, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Import):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
            super().save(tuple(obj.arguments))
            self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


def write(path: Path, content: object, *, folder: str = "archive") -> Path:
    """A file that `torch.load` takes for a checkpoint."""
    import io

    buffer = io.BytesIO()
    Writer(buffer, protocol=2).dump(content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{folder}/data.pkl", buffer.getvalue())
        archive.writestr(f"{folder}/version", "3\n")
    return path


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, models: Callable[..., Path]) -> Callable[..., Path]:
    """A checkpoint as Ultralytics writes it, of a model that was never trained."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def made(task: str, family: str = "yolov8") -> Path:
        from ultralytics import YOLO

        path = folder / f"{family}-{task}.pt"
        if not path.exists():
            model = YOLO(str(models(task, family)))
            model.model.args = {**model.model.args, "task": task}  # as after training
            model.save(str(path))
        return path

    return made


@pytest.mark.parametrize("family", ["yolov8", "yolo11", "yolo26"])
@pytest.mark.parametrize("task", TASKS)
def test_what_ultralytics_writes_is_admitted(task: str, family: str, checkpoints: Callable[..., Path]) -> None:
    path = checkpoints(task, family)
    check_weights(path)
    assert task_of(str(path)) == task


def test_a_checkpoint_in_mid_training_is_admitted(checkpoints: Callable[..., Path], tmp_path: Path) -> None:
    """Ultralytics' `last.pt` before it is stripped: optimizer state, scaler, dates, results, half precision."""
    from copy import deepcopy

    ckpt = torch.load(checkpoints("detect"), weights_only=False)
    model = deepcopy(ckpt["model"]).float()
    optimizer = torch.optim.AdamW(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    path = tmp_path / "last.pt"
    torch.save(
        {
            **ckpt,
            "ema": deepcopy(model).half(),
            "optimizer": optimizer.state_dict(),
            "scaler": {},
            "updates": 7,
            "train_results": {"epoch": [1.0]},
            "train_args": {"data": "x.yaml", "box": 7.5},
            "best_fitness": torch.tensor(0.5).numpy(),
        },
        path,
    )
    check_weights(path)


def test_a_classifier_that_carries_its_transforms_is_admitted(checkpoints: Callable[..., Path], tmp_path: Path) -> None:
    """As Ultralytics' trainer leaves one."""
    from ultralytics.data.augment import classify_transforms

    ckpt = torch.load(checkpoints("classify"), weights_only=False)
    ckpt["model"].transforms = classify_transforms(64)
    torch.save(ckpt, tmp_path / "m.pt")
    check_weights(tmp_path / "m.pt")
    assert task_of(str(tmp_path / "m.pt")) == "classify"


EVIL: dict[str, object] = {
    "os.system": Call(os.system, "touch RAN"),
    "eval": Call(builtins.eval, "open('RAN', 'w')"),
    "exec": Call(builtins.exec, "open('RAN', 'w')"),
    "getattr": Import("builtins", "getattr", "x", "upper"),
    "__builtin__.getattr": Import("__builtin__", "getattr", "x", "upper"),
    "__import__": Call(builtins.__import__, "os"),
    "open": Call(builtins.open, "RAN", "w"),
    "subprocess": Call(subprocess.call, ["touch", "RAN"]),
    "posix.system": Import("posix", "system", "touch RAN"),
    "torch.load": Import("torch", "load", "RAN"),
    "torch.hub.load": Import("torch.hub", "load", "a/b", "c"),
    "torch.serialization.load": Import("torch.serialization", "load", "RAN"),
    "torch.storage function": Import("torch.storage", "_load_from_bytes", b"x"),
    "numpy.load": Import("numpy", "load", "RAN"),
    "dotted name": Import("torch.nn.modules.module", "sys.modules"),
    "a function of a model module": Import("ultralytics.nn.tasks", "torch_safe_load", "RAN"),
    "a download of a model module": Import("ultralytics.utils.downloads", "safe_download", "http://127.0.0.1:9/x"),
    "a class that loads other files": Import("ultralytics.nn.autobackend", "AutoBackend", "RAN.pt"),
    "a model class called with a path": Import("ultralytics.nn.tasks", "DetectionModel", "RAN.yaml"),
    "runpy": Import("runpy", "run_path", "RAN"),
    "a module that is not there": Import("no_such_module", "anything", 1),
    "copyreg": Import("copyreg", "_reconstructor", 1, 2, 3),
}


@pytest.mark.parametrize("what", EVIL)
def test_code_is_refused_and_not_run(what: str, working_folder: Path) -> None:
    path = write(working_folder / "evil.pt", {"model": EVIL[what], "epoch": -1})
    with pytest.raises(UserError, match="would run code that is not part of a model") as caught:
        check_weights(path)
    assert "do not load it" in caught.value.remedy
    assert [file.name for file in working_folder.iterdir()] == ["evil.pt"], "something was run"


def test_code_beside_a_whole_model_is_refused(checkpoints: Callable[..., Path], working_folder: Path) -> None:
    ckpt = torch.load(checkpoints("detect"), weights_only=False)
    ckpt["model"].note = Call(os.system, "touch RAN")
    torch.save(ckpt, "evil.pt")
    with pytest.raises(UserError, match="system"):
        check_weights(working_folder / "evil.pt")
    assert not Path("RAN").exists()


def test_a_second_pickle_in_the_archive_is_not_overlooked(
    checkpoints: Callable[..., Path], working_folder: Path
) -> None:
    """torch reads the one in the archive's first folder, wherever another one is."""
    whole = zipfile.ZipFile(checkpoints("detect"))
    innocent = next(name for name in whole.namelist() if name.endswith("data.pkl"))
    evil = working_folder / "evil.zip"
    write(evil, {"model": EVIL["os.system"]}, folder="loaded")
    with zipfile.ZipFile("both.pt", "w") as archive, zipfile.ZipFile(evil) as bad:
        archive.writestr("loaded/version", "3\n")
        archive.writestr("decoy/data.pkl", whole.read(innocent))
        archive.writestr("loaded/data.pkl", bad.read("loaded/data.pkl"))
    with pytest.raises(UserError):
        check_weights(Path("both.pt"))


def test_what_torch_reads_is_what_was_looked_at(checkpoints: Callable[..., Path], working_folder: Path) -> None:
    """Two members of one name: whichever of them torch takes, the file is refused."""
    import warnings

    innocent = zipfile.ZipFile(checkpoints("detect"))
    name = next(name for name in innocent.namelist() if name.endswith("data.pkl"))
    write(working_folder / "evil.zip", {"model": EVIL["os.system"]})
    with zipfile.ZipFile("evil.zip") as bad:
        evil = bad.read("archive/data.pkl")
    for contents in ([evil, innocent.read(name)], [innocent.read(name), evil]):
        with warnings.catch_warnings(), zipfile.ZipFile("both.pt", "w") as archive:
            warnings.simplefilter("ignore")
            for content in contents:
                archive.writestr("archive/data.pkl", content)
        with pytest.raises(UserError):
            check_weights(Path("both.pt"))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_every_protocol_is_read(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"model": Call(os.system, "true")}, protocol=protocol))
    with pytest.raises(UserError, match="system"):
        check_weights(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"PK\x03\x04", b"\x80\x02}q\x00.", b"\x00" * 4096],
    ids=["empty", "text", "torn zip", "bare pickle", "zeros"],
)
def test_what_is_no_checkpoint(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not a model checkpoint") as caught:
        check_weights(path)
    assert str(path) in caught.value.message


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_a_checkpoint_that_was_cut_short(share: float, checkpoints: Callable[..., Path], tmp_path: Path) -> None:
    whole = checkpoints("detect").read_bytes()
    path = tmp_path / "weights.pt"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match="is not a model checkpoint"):
        check_weights(path)


@pytest.mark.parametrize(
    "pickled", [b"", b"\x80", b"\x80\x02cos\nsystem\n", b"\x80\x02]q\x00(", b"garbage", b"\xff" * 50]
)
def test_a_pickle_that_is_damaged(pickled: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
    with pytest.raises(UserError):
        check_weights(path)


def test_an_archive_without_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "hello")
    with pytest.raises(UserError, match=r"holds no data\.pkl"):
        check_weights(path)


def test_models_without_a_file_have_no_task(tmp_path: Path) -> None:
    assert task_of("yolov8n.yaml") is None
    assert task_of(str(tmp_path / "nothing.pt")) is None


def test_plain_unpickling_would_have_run_it(working_folder: Path) -> None:
    """The control: the same file, loaded without looking."""
    path = write(working_folder / "evil.pt", {"model": EVIL["os.system"]})
    code = f"import torch; torch.load({str(path)!r}, weights_only=False)"
    subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert (working_folder / "RAN").exists()

"""What is wrong with a request is said at once, with a remedy and exit code 2, and nothing is lost or overwritten."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.faults.runs import Prepare, checkpoints, full_disk_while, happened, steadyolo, table
from tests.faults.uninterrupted import Reference

EXIT_FAILED, EXIT_WRONG_REQUEST = 1, 2


def refused(output: str, *parts: object) -> None:
    """The output ends with one error that names `parts` and a remedy, and nothing that only a programmer can read."""
    error = output[output.rindex("error: ") :]
    assert "\n  remedy: " in error, error
    for part in parts:
        assert str(part) in error, f"{part} is not named in: {error}"
    assert "Traceback" not in output, output


@pytest.fixture
def train(reference: Reference, tmp_path: Path) -> Callable[..., str]:
    """Ask for a small run with something wrong in it; returns what it says. Nothing of it may be left as a run."""

    def asked(*, prepare: tuple[Prepare, ...] = (), **changes: object) -> str:
        run = tmp_path / "project" / "run"
        (tmp_path / "project").mkdir(exist_ok=True)
        given = {f"{name.replace('__', '.')}=": value for name, value in changes.items()}
        words = [word for word in reference.words(run) if not word.startswith(tuple(given))]
        words += [f"{name}{value}" for name, value in given.items() if value is not None]
        outcome = steadyolo(*words, log=tmp_path / "log", prepare=prepare).expect(EXIT_WRONG_REQUEST)
        assert not checkpoints(run)
        return outcome.output

    return asked


@pytest.fixture
def data(boards: Callable[[str], Path], tmp_path: Path) -> Path:
    """A data set of the test's own; its yaml."""
    source = boards("detect").parent
    copy = Path(shutil.copytree(source, tmp_path / "data", ignore=shutil.ignore_patterns("*.cache")))
    (copy / "data.yaml").write_text((copy / "data.yaml").read_text().replace(str(source), str(copy)))
    return copy / "data.yaml"


def images(data: Path, split: str = "train") -> list[Path]:
    return sorted((data.parent / "images" / split).glob("*"))


def label_of(image: Path) -> Path:
    return image.parents[2] / "labels" / image.parent.name / f"{image.stem}.txt"


# --- arguments ---


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["epoch=3"], ["unknown argument 'epoch'", "did you mean epochs"]),
        (["save.evry=30s"], ["unknown argument 'save.evry'", "did you mean save.every"]),
        (["epochs"], ["'epochs' is not key=value", "epochs=VALUE"]),
        (["epochs=three"], ["epochs", "three"]),
        (["epochs=3", "epochs=4"], ["epochs is given twice: 3 and 4"]),
        (["save.every=often"], ["save.every is 'often'", "30s"]),
        (["save.keep_last=0"], ["save.keep_last is '0'", "at least 1"]),
        (["amp=False", "precision.compute=bf16"], ["amp=False and precision.compute=bf16 contradict each other"]),
        (["rect=True", "multi_scale=0.5"], ["rect=True and multi_scale contradict each other"]),
        (["batch=-2"], ["batch=-2 is no number of images", "batch=16, or auto"]),
        (["batch=auto", "memory.micro_batch=2"], ["batch=auto and memory.micro_batch contradict each other"]),
        (["memory.budget=8 GiBs"], ["memory.budget: '8 GiBs' is not a size", "8GiB"]),
        (["batch=0.7"], ["batch=0.7 leaves the number of images open"]),
        (["device=0,1"], ["device=0,1 cannot be used", "device=cpu"]),
        (["device=0,1", "launch.ranks=3"], ["launch.ranks=3 and device=0,1 contradict each other"]),
        (["launch.ranks=two"], ["launch.ranks is 'two'"]),
        (["device=cuda:7"], ["cuda:7"]),
        (["task=paint"], ["task=paint is not supported", "detect, segment"]),
        (["optimizer=Sgdd"], ["Sgdd"]),
        (["mosaic=7"], ["mosaic"]),
        (["imgsz=100"], ["imgsz=100 is not a multiple of the model's stride 32", "imgsz=96 or imgsz=128"]),
        (["imgsz=8"], ["imgsz=8", "imgsz=32"]),
        (["resume=True"], ["use `steadyolo resume RUN`"]),
        (["precision.compute=fp16"], ["fp16 cannot be trained in on a CPU"]),
        (["memory.micro_batch=0"], ["memory.micro_batch is '0'"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and len(value) < 3 else None,
)
def test_an_argument_that_is_wrong(words: list[str], parts: list[str], reference: Reference, tmp_path: Path) -> None:
    run = tmp_path / "project" / "run"
    names = tuple(f"{word.partition('=')[0]}=" for word in words)
    given = [word for word in reference.words(run, epochs=1) if not word.startswith(names)]
    refused(steadyolo(*given, *words, log=tmp_path / "log").expect(EXIT_WRONG_REQUEST).output, *parts)
    assert not checkpoints(run)


@pytest.mark.parametrize("limit_bytes", [800 << 20, 1900 << 20])
def test_a_process_that_may_not_even_load_torch(limit_bytes: int, tmp_path: Path) -> None:
    words = ["plan", "model=yolov8n.yaml", "batch=8", "memory.boxes=9", "device=cpu"]
    outcome = subprocess.run(
        [sys.executable, "-m", "steadyolo.cli.main", *words],
        preexec_fn=partial(resource.setrlimit, resource.RLIMIT_AS, (limit_bytes, limit_bytes)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert outcome.returncode == EXIT_FAILED
    refused(outcome.stderr, "failed to map segment", "raise the limit")


def test_nothing_is_left_behind_by_an_unknown_argument(reference: Reference, tmp_path: Path) -> None:
    run = tmp_path / "project" / "run"
    steadyolo(*reference.words(run), "epoch=3", log=tmp_path / "log").expect(EXIT_WRONG_REQUEST)
    assert not run.parent.exists()


@pytest.mark.parametrize("name", ["model", "data"])
def test_what_is_missing_is_named(name: str, train: Callable[..., str]) -> None:
    refused(train(**{name: None}), f"no {name} is given", f"add {name}=")


# --- data ---


def test_a_data_yaml_that_is_not_there(train: Callable[..., str], tmp_path: Path) -> None:
    refused(train(data=tmp_path / "nothing.yaml"), tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("path: [unclosed", "cannot be read"),
        ("just words", "is not a mapping"),
        ("", "is not a mapping"),
        ("train: images/train\nval: images/val\n", "names"),
        ("path: PATH\nval: images/val\nnames: {0: a}\n", "train"),
        ("path: PATH\ntrain: images/train\nnames: {0: a, 1: b, 2: c, 3: d, 4: e, 5: f}\n", "val"),
        ("path: PATH\ntrain: images/train\nval: images/val\nnames: [a, b]\nnc: 3\n", "nc"),
        ("path: PATH\ntrain: images/nowhere\nval: images/val\nnames: {0: a}\n", "images/nowhere"),
        ("path: PATH\ntrain: 7\nval: images/val\nnames: {0: a}\n", "data.yaml"),
    ],
)
def test_a_data_yaml_that_is_malformed(content: str, part: str, data: Path, train: Callable[..., str]) -> None:
    data.write_text(content.replace("PATH", str(data.parent)))
    refused(train(data=data), data, part)


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_split(split: str, data: Path, train: Callable[..., str]) -> None:
    for image in images(data, split):
        image.unlink()
    refused(train(data=data), f"images/{split}")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("0 1.5 0.5 0.1 0.1", "non-normalized or out of bounds"),
        ("0 0.5 0.5 -0.1 0.1", "negative"),
        ("17 0.5 0.5 0.1 0.1", "class"),
        ("0 0.5 0.5", "label"),
        ("zero 0.5 0.5 0.1 0.1", "zero"),
        ("0 nan 0.5 0.1 0.1", "out of bounds"),
    ],
    ids=["outside the image", "negative", "unknown class", "too short", "no number", "not a number"],
)
def test_a_label_that_is_wrong_is_refused_and_may_be_skipped(
    line: str, why: str, data: Path, train: Callable[..., str], reference: Reference, tmp_path: Path
) -> None:
    image = images(data)[3]
    label = label_of(image)
    label.write_text(f"0 0.5 0.5 0.2 0.2\n{line}\n")
    output = train(data=data, data__bad_labels="refuse", epochs=1)
    refused(output, image, "data.bad_labels=skip")
    assert why in output.lower()
    assert label.read_text().endswith(f"{line}\n"), "the label file was changed"

    run = tmp_path / "skipping"
    words = [word for word in reference.words(run, epochs=1) if not word.startswith("data=")]
    steadyolo(*words, f"data={data}", log=tmp_path / "log").expect(0)
    skipped = happened(run, "images_skipped")
    assert [event["count"] for event in skipped] == [1]
    assert list(skipped[0]["listed"]) == [str(image)]
    assert happened(run, "run_started")[0]["num_train_images"] == 13


def spoil(image: Path, how: str) -> None:
    match how:
        case "unreadable":
            image.write_bytes(b"this is no image" * 20)
        case "truncated":
            image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
        case "zero bytes":
            image.write_bytes(b"")
        case "16 bit":
            image.unlink()
            deep = np.full((96, 96), 40_000, np.uint16)
            cv2.imwrite(str(image.with_suffix(".png")), deep)
        case "tiny":
            image.unlink()
            cv2.imwrite(str(image.with_suffix(".png")), np.zeros((4, 4, 3), np.uint8))


SPOILT = ["unreadable", "truncated", "zero bytes", "16 bit", "tiny"]


def test_images_that_cannot_be_used_are_left_out_counted_and_listed(
    data: Path, reference: Reference, tmp_path: Path
) -> None:
    bad = images(data)[:5]
    for image, how in zip(bad, SPOILT, strict=True):
        spoil(image, how)
    spoil(images(data, "val")[0], "truncated")
    run = tmp_path / "run"
    words = [word for word in reference.words(run, epochs=1) if not word.startswith("data=")]
    outcome = steadyolo(*words, f"data={data}", log=tmp_path / "log").expect(0)
    listed = {Path(file).stem for event in happened(run, "images_skipped") for file in event["listed"]}
    count = sum(event["count"] for event in happened(run, "images_skipped"))
    assert {image.stem for image in bad} <= listed
    assert count == 6, listed
    started = happened(run, "run_started")[0]
    assert (started["num_train_images"], started["num_val_images"]) == (9, 4)
    assert "6 images are left out" in outcome.output
    assert all(image.stem in outcome.output for image in bad)
    assert len(table(run)) == 1
    assert images(data)[0].read_bytes().startswith(b"this is no image"), "an image was changed"


@pytest.mark.parametrize("how", SPOILT)
def test_a_run_without_any_good_image_is_refused(how: str, data: Path, train: Callable[..., str]) -> None:
    for image in images(data):
        spoil(image, how)
    output = train(data=data)
    refused(output)
    assert "none of the 14 images can be used" in output
    assert images(data)[0].stem in output


@pytest.mark.parametrize("how", ["unreadable", "truncated", "zero bytes", "16 bit"])
def test_classification_leaves_bad_images_out_too(
    how: str, boards: Callable[[str], Path], reference: Reference, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(boards("classify"), tmp_path / "data", ignore=shutil.ignore_patterns("*.cache")))
    bad = sorted(copy.glob("train/*/*.jpg"))[0]
    spoil(bad, how)
    run = tmp_path / "run"
    words = [word for word in reference.words(run, task="classify", epochs=1) if not word.startswith("data=")]
    steadyolo(*words, f"data={copy}", log=tmp_path / "log").expect(0)
    skipped = happened(run, "images_skipped")
    assert [event["count"] for event in skipped] == [1]
    assert [Path(file).stem for file in skipped[0]["listed"]] == [bad.stem]


def test_a_classification_folder_that_is_not_there(train: Callable[..., str], tmp_path: Path) -> None:
    output = train(data=tmp_path / "nothing", task="classify", model="yolov8n-cls.yaml")
    refused(output, tmp_path / "nothing")


# --- weights ---


class Runs:
    """Pickles to a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self._call


def test_weights_that_carry_code_are_refused_and_not_run(train: Callable[..., str], tmp_path: Path) -> None:
    import os

    ran, evil = tmp_path / "ran", tmp_path / "evil.pt"
    torch.save({"model": Runs(os.system, f"touch '{ran}'"), "epoch": -1}, evil)
    for words in ({"model": evil}, {"pretrained": evil}):
        refused(train(**words), evil, "would run code", "system")
        assert not ran.exists(), "the file's code was run"


def test_the_refusal_is_needed(tmp_path: Path) -> None:
    """What plain unpickling does with the same file."""
    import os

    ran, evil = tmp_path / "ran", tmp_path / "evil.pt"
    torch.save({"model": Runs(os.system, f"touch '{ran}'"), "epoch": -1}, evil)
    torch.load(evil, weights_only=False)
    assert ran.exists()


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 torn"], ids=["empty", "text", "torn"])
def test_a_file_that_is_no_checkpoint(content: bytes, train: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(content)
    refused(train(model=file), file, "is not a model checkpoint")


def test_a_checkpoint_that_was_cut_short(reference: Reference, train: Callable[..., str], tmp_path: Path) -> None:
    whole = (reference.uninterrupted().run / "weights" / "best.pt").read_bytes()
    file = tmp_path / "weights.pt"
    file.write_bytes(whole[: len(whole) // 2])
    refused(train(model=file), file, "is not a model checkpoint")


def test_tensors_without_a_model(train: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(3)}, file)
    refused(train(model=file), file)


@pytest.mark.parametrize("name", ["nothing.pt", "nothing.yaml"])
def test_a_model_that_is_not_there(name: str, train: Callable[..., str], tmp_path: Path) -> None:
    refused(train(model=tmp_path / name), tmp_path / name)


def test_a_model_yaml_that_is_malformed(train: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "yolov8n.yaml"
    file.write_text("nc: 3\nbackbone: 7\n")
    refused(train(model=file), file)


# --- the run folder ---


def test_a_run_that_is_there_is_never_overwritten(reference: Reference, tmp_path: Path) -> None:
    run = Path(shutil.copytree(reference.uninterrupted().run, tmp_path / "run"))

    def content() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}

    before = content()
    outcome = steadyolo(*reference.words(run), "exist_ok=True", log=tmp_path / "log").expect(EXIT_WRONG_REQUEST)
    refused(outcome.output, "already holds a run", f"steadyolo resume {run}")
    assert content() == before

    steadyolo(*reference.words(run, epochs=1), log=tmp_path / "log").expect(
        0
    )  # gets the next number, as in Ultralytics
    assert content() == before
    assert [path.name for path in sorted(tmp_path.glob("run*")) if path.is_dir()] == ["run", "run-2"]


def test_a_project_that_is_a_file(reference: Reference, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    output = steadyolo(*reference.words(tmp_path / "file" / "run"), log=tmp_path / "log").expect(2).output
    refused(output, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"


def test_a_disk_that_is_full_at_the_start(train: Callable[..., str], tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.touch()
    refused(train(prepare=(partial(full_disk_while, full),)), "No space left on device")
    assert full.read_text(), "nothing was refused, so this proves nothing"


def mounting() -> list[str] | None:
    for unshare in (["unshare", "-m"], ["unshare", "-Urm"]):
        probe = [*unshare, "sh", "-c", "mount -t tmpfs -o size=64k tmpfs /mnt"]
        if shutil.which("unshare") and subprocess.run(probe, check=False, capture_output=True).returncode == 0:
            return [*unshare, "sh", "-ec"]
    return None


@pytest.mark.parametrize(
    ("options", "says"), [("size=1m,ro", "Read-only file system"), ("size=300k", "No space left on device")]
)
def test_a_file_system_that_cannot_be_written(options: str, says: str, reference: Reference, tmp_path: Path) -> None:
    shell = mounting()
    if shell is None:
        pytest.skip("no right to mount a small file system here, neither as root nor in a user namespace")
    project = tmp_path / "mounted"
    project.mkdir()
    train = [sys.executable, "-m", "steadyolo.cli.main", *reference.words(project / "run")]
    ended = subprocess.run(
        [*shell, f"mount -t tmpfs -o {options} tmpfs '{project}'; exec \"$@\"", "sh", *train],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**__import__("os").environ, "PYTHONPATH": ":".join(filter(None, sys.path))},
    )
    assert ended.returncode == EXIT_WRONG_REQUEST, ended.stdout[-2000:] + ended.stderr[-2000:]
    refused(ended.stdout + ended.stderr, says, project)

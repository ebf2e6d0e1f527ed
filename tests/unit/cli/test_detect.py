"""`Detector` and `steadyolo detect`: from names of files to what is on them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import steadyolo
from steadyolo.cli.detect import main
from steadyolo.errors import UserError
from steadyolo.serve.served_model import ServedModel
from steadyolo.serve.service import BadImage
from tests.served import drawn

CONF = 0.05


@pytest.fixture(scope="module")
def detector(served: Callable[..., ServedModel]) -> steadyolo.Detector:
    return steadyolo.Detector(served("detect").folder, runtime="onnxruntime")


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """BGR, and not square."""
    return np.ascontiguousarray((drawn(1)[0, ::-1, :120].transpose(1, 2, 0) * 255).astype(np.uint8))


@pytest.fixture
def folder(tmp_path: Path, picture: np.ndarray) -> Path:
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for name in ("b.png", "a.bmp", "deep/c.png"):
        cv2.imwrite(str(tmp_path / "photos" / name), picture)
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    writer = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (160, 120))
    for _ in range(3):
        writer.write(picture)
    writer.release()
    return tmp_path


def test_every_kind_of_picture_is_the_same_picture(
    detector: steadyolo.Detector, picture: np.ndarray, folder: Path
) -> None:
    path = folder / "photos" / "b.png"
    expected = detector(picture, conf=CONF).summary()
    assert expected, "nothing found, so nothing was compared"
    pil = Image.fromarray(np.ascontiguousarray(picture[..., ::-1]))
    for source in (path, str(path), path.read_bytes(), pil):
        assert detector(source, conf=CONF).summary() == expected
    both = detector([path, picture], conf=CONF)
    assert [one.summary() for one in both] == [expected, expected]
    assert both[0].path == str(path)
    assert set(both[0].speed) == {"decode", "preprocess", "inference", "postprocess"}


@pytest.mark.parametrize(
    "source", [np.zeros((4, 4, 5), np.uint8), np.zeros((4, 4, 3), np.float32), 7, b"text"], ids=str
)
def test_what_is_no_picture_is_refused(detector: steadyolo.Detector, source: object) -> None:
    with pytest.raises(BadImage):
        detector(source)


def test_options_that_there_are_not_are_refused(detector: steadyolo.Detector, picture: np.ndarray) -> None:
    with pytest.raises(UserError, match="no option is called confidence"):
        detector(picture, confidence=0.5)
    assert {one["class"] for one in detector(picture, conf=CONF, classes=[1]).summary()} <= {1}
    for wrong in ({"conf": 1.5}, {"iou": float("nan")}, {"max_det": 0}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))} is "):
            detector(picture, **wrong)


def test_a_process_that_detects_loads_nothing_that_trains(served: Callable[..., ServedModel], folder: Path) -> None:
    code = f"""
import sys, steadyolo
steadyolo.Detector({str(served("detect").folder)!r}, runtime="openvino")({str(folder / "photos" / "b.png")!r})
heavy = {{"torch", "ultralytics", "typer", "rich", "PIL", "boto3", "obstore", "onnxruntime", "openvino"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_files_folders_patterns_and_films(
    served: Callable[..., ServedModel], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(served("detect").folder)
    photos = folder / "photos"
    main([model, str(photos), str(photos / "*.png"), str(folder / "film.avi"), "--json", "--conf", str(CONF),
          "--runtime", "onnxruntime", "--save", str(folder / "marked"), "--show-times"])  # fmt: skip
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    names = [photos / "a.bmp", photos / "b.png", photos / "deep" / "c.png", photos / "b.png"]
    assert [one["source"] for one in told] == [*map(str, names), *(f"{folder / 'film.avi'}#{n}" for n in (1, 2, 3))]
    assert told[0]["objects"] == told[1]["objects"] != []
    assert (told[0]["height"], told[0]["width"]) == (120, 160)
    assert {"decode", "inference"} <= set(told[0]["milliseconds"])
    marked = cv2.imread(str(folder / "marked" / "b.png"))
    assert marked.shape == (120, 160, 3)
    assert (marked != cv2.imread(str(photos / "b.png"))).any(), "nothing was drawn"
    assert len(list((folder / "marked").iterdir())) == 6


def test_pictures_of_one_name_are_saved_apart(served: Callable[..., ServedModel], folder: Path) -> None:
    (folder / "photos" / "deep" / "c.png").rename(folder / "photos" / "deep" / "b.png")
    main([str(served("detect").folder), str(folder / "photos"), "--runtime", "onnxruntime",
          "--save", str(folder / "marked")])  # fmt: skip
    assert sorted(path.name for path in (folder / "marked").iterdir()) == ["a.bmp", "b-2.png", "b.png"]


def test_who_reads_no_more_is_no_reason_for_a_traceback(served: Callable[..., ServedModel], folder: Path) -> None:
    words = [sys.executable, "-m", "steadyolo.cli.main", "detect", str(served("detect").folder), str(folder)]
    with subprocess.Popen([*words, "--runtime", "onnxruntime"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as one:
        assert one.stdout and one.stderr
        one.stdout.close()
        assert one.stderr.read() == b""
    assert one.returncode == 0


def test_threads_take_turns(detector: steadyolo.Detector, picture: np.ndarray) -> None:
    pictures = [np.ascontiguousarray(np.roll(picture, shift, 1)) for shift in range(0, 120, 10)]
    alone = [detector(one, conf=CONF).summary() for one in pictures]
    fresh = steadyolo.Detector(detector.model.folder, runtime="onnxruntime")
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(lambda one: fresh(one, conf=CONF).summary(), pictures))
    assert together == alone
    assert any(alone)


def test_what_cannot_be_read_is_told_and_passed_over(
    served: Callable[..., ServedModel], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    sources = [str(folder / name) for name in ("torn.jpg", "gone.jpg", "photos/b.png")]
    with pytest.raises(SystemExit) as end:
        main([str(served("detect").folder), *sources, "--runtime", "onnxruntime"])
    assert end.value.code == 1
    told = capsys.readouterr()
    assert "torn.jpg: 4 bytes that are no" in told.err
    assert "gone.jpg: there is no such file" in told.err
    assert "b.png: " in told.out


@pytest.mark.parametrize("task", ["segment", "pose", "obb", "classify"])
def test_other_tasks_are_drawn(served: Callable[..., ServedModel], picture: np.ndarray, task: str) -> None:
    from steadyolo.serve.drawing import drawn as marked

    result = steadyolo.Detector(served(task).folder, runtime="onnxruntime")(picture, conf=CONF)
    assert len(result)
    assert (marked(result) != picture).any()


def test_classes_by_name(served: Callable[..., ServedModel], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, photo = served("detect"), str(folder / "photos" / "b.png")
    main([str(model.folder), photo, "--classes", f"{model.classes[1]},0", "--json", "--conf", str(CONF),
          "--runtime", "onnxruntime"])  # fmt: skip
    assert {one["class"] for one in json.loads(capsys.readouterr().out)["objects"]} <= {0, 1}
    with pytest.raises(UserError, match="no class 'cat'"):
        main([str(model.folder), photo, "--classes", "cat", "--runtime", "onnxruntime"])

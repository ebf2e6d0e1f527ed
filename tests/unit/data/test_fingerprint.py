from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steadyolo.data.fingerprint import fingerprint


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    made = [tmp_path / "train" / f"{name}.jpg" for name in "ab"]
    for number, file in enumerate(made):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x" * (number + 1))
    return made


def labels() -> list[dict[str, Any]]:
    return [
        {"cls": np.array([[number]], np.float32), "segments": [np.ones((3, 2))], "shape": (4, 5)} for number in (0, 1)
    ]


def of(files: list[Path], given: list[dict[str, Any]], names: dict[int, str]) -> str:
    return fingerprint([str(file) for file in files], given, names)


NAMES = {0: "open", 1: "short"}


def test_the_same_data_has_the_same_fingerprint_wherever_it_lies(files: list[Path], tmp_path: Path) -> None:
    first = of(files, labels(), NAMES)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    files[0].parent.rename(moved / "train")
    assert of([moved / "train" / file.name for file in files], labels(), NAMES) == first
    assert of([moved / "train" / file.name for file in files], labels(), dict(reversed(NAMES.items()))) == first


def test_any_change_that_training_would_notice_changes_it(files: list[Path]) -> None:
    seen = {of(files, labels(), NAMES)}

    changed = labels()
    changed[1]["cls"][0, 0] = 2
    seen.add(of(files, changed, NAMES))
    changed = labels()
    changed[0]["segments"][0][0, 0] = 0.5
    seen.add(of(files, changed, NAMES))
    seen.add(of(files, labels(), {0: "short", 1: "open"}))
    seen.add(of(files[::-1], labels(), NAMES))
    seen.add(of(files[:1], labels()[:1], NAMES))
    files[0].write_bytes(b"longer than before")
    seen.add(of(files, labels(), NAMES))
    renamed = files[0].with_name("c.jpg")
    files[0].rename(renamed)
    seen.add(of([renamed, files[1]], labels(), NAMES))
    assert len(seen) == 8

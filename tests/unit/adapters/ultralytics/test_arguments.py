from __future__ import annotations

from typing import Any

import pytest
from ultralytics.cfg import DEFAULT_CFG_DICT

from steadyolo.adapters.ultralytics.arguments import MAY_CHANGE, check_arguments, check_changes, known_arguments
from steadyolo.errors import UserError

MINIMAL = {"model": "yolov8n.yaml", "data": "data.yaml"}


def test_every_train_argument_of_ultralytics_is_known() -> None:
    assert set(known_arguments()) >= set(DEFAULT_CFG_DICT)
    assert set(known_arguments()) >= MAY_CHANGE


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"batch": 4, "imgsz": 320, "mosaic": 0.5, "optimizer": "AdamW", "device": "cpu"},
        {"task": "obb", "cache": "ram", "close_mosaic": 0, "amp": False},
        {"rect": True, "multi_scale": 0.0},
        {"freeze": [0, 1], "classes": [1], "fraction": 0.5, "cos_lr": True},
    ],
    ids=str,
)
def test_what_ultralytics_takes_is_taken(given: dict[str, Any]) -> None:
    check_arguments({**MINIMAL, **given})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epoch": 3}, "unknown argument 'epoch'"),
        ({"epochs": "many"}, "epochs"),
        ({"mosaic": 2.0}, "mosaic"),
        ({"lr0": "fast"}, "lr0"),
        ({"model": None}, "no model is given"),
        ({"data": None}, "no data is given"),
        ({"batch": 0}, "batch=0 is no number of images"),
        ({"batch": 0.6}, "leaves the number of images open"),
        ({"batch": 2.5}, "is no number of images"),
        ({"batch": True}, "is no number of images"),
        ({"device": "0,1"}, "cannot be used"),
        ({"device": [0, 1]}, "cannot be used"),
        ({"resume": True}, "is not how a run goes on"),
        ({"save": False}, "save=False contradicts"),
        ({"task": "paint"}, "task=paint is not supported"),
        ({"rect": True, "multi_scale": 0.5}, "contradict each other"),
        ({"distill_model": "x.pt"}, "not supported"),
    ],
    ids=str,
)
def test_what_is_refused_before_anything_starts(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_arguments({**MINIMAL, **given})
    assert message in caught.value.message
    assert caught.value.remedy


def test_what_changes_the_mathematics_may_not_change() -> None:
    check_changes(dict.fromkeys(MAY_CHANGE, 1))
    for name in ("batch", "lr0", "imgsz", "mosaic", "optimizer", "seed", "fraction", "nbs", "amp", "freeze"):
        with pytest.raises(UserError, match=f"{name} cannot change"):
            check_changes({name: 1})
    with pytest.raises(UserError, match="unknown argument 'epoch'"):
        check_changes({"epoch": 1})

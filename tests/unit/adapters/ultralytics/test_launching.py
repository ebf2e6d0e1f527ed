"""How many processes a request means, and on which devices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steadyolo.adapters.ultralytics.launching import Launching, device_of, ranks_asked
from steadyolo.errors import UserError


@pytest.mark.parametrize(
    ("asked", "num_ranks"),
    [
        ({}, 1),
        ({"device": "cpu"}, 1),
        ({"device": 0}, 1),
        ({"device": "0,1"}, 2),
        ({"device": [0, 1, 2]}, 3),
        ({"device": "cpu", "launch.ranks": "2"}, 2),
        ({"launch.ranks": 1}, 1),
        ({"device": "0,1", "launch.ranks": "2"}, 2),
    ],
)
def test_a_process_for_each_device(asked: dict[str, Any], num_ranks: int) -> None:
    assert ranks_asked(asked) == num_ranks


@pytest.mark.parametrize("asked", [{"device": "0,1", "launch.ranks": 1}, {"device": "0", "launch.ranks": 2}])
def test_numbers_that_contradict_the_devices_are_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="contradict each other"):
        ranks_asked(asked)


def test_a_run_that_goes_on_has_as_many_as_before_unless_asked_otherwise(tmp_path: Path) -> None:
    (tmp_path / "steadyolo").mkdir()
    spec = {"version": 1, "arguments": {"device": "0,1,2"}, "ours": {}}
    (tmp_path / "steadyolo" / "spec.json").write_text(json.dumps(spec))
    assert ranks_asked({"resume": str(tmp_path)}) == 3
    assert ranks_asked({"resume": str(tmp_path), "device": None}) == 3
    assert ranks_asked({"resume": str(tmp_path), "device": 0}) == 1
    assert ranks_asked({"resume": str(tmp_path / "elsewhere")}) == 1  # told when it is opened


def test_each_process_has_a_device_of_its_own() -> None:
    assert [device_of({"device": "3,5"}, local_rank=rank) for rank in range(2)] == ["3", "5"]
    assert [device_of({"device": "cpu"}, local_rank=rank) for rank in range(2)] == ["cpu", "cpu"]
    with pytest.raises(UserError, match="device=3,5 has no device for process 2"):
        device_of({"device": "3,5"}, local_rank=2)


def test_what_cannot_be_handed_on_is_refused(tmp_path: Path) -> None:
    data = {"data": str(tmp_path / "pcb.yaml"), "model": "yolov8n.yaml", "device": "cpu"}
    assert Launching(data, 2, None).best.name == "best.pt"
    with pytest.raises(UserError, match="cannot be handed to the processes"):
        Launching({**data, "augmentations": [object()]}, 2, None)

"""How long an epoch will take, from runs that were measured: nothing is guessed where there is none."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steadyolo.cli.runs import find_runs
from steadyolo.events import EpochClosed, RunStarted, StepDone, read_events
from steadyolo.vault.files import OURS_FOLDER

_DEFAULTS = {"imgsz": 640, "batch": 16}
_NUM_RATES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What a run was measured to do."""

    run: str
    device: str
    precision: str
    images_per_second: float
    epoch_seconds: float | None  # training and scoring, where an epoch was closed
    num_images: int  # of its data set

    def seconds_of_epoch(self, num_images: int | None) -> float:
        """Predicted duration of an epoch over `num_images`, None being as many as that run had."""
        if self.epoch_seconds is not None:
            return self.epoch_seconds * (num_images or self.num_images) / max(1, self.num_images)
        return (num_images or self.num_images) / self.images_per_second


def measured_pace(project: Path, arguments: Mapping[str, Any], device_kind: str) -> Pace | None:
    """The pace of the newest run below `project` of the same model, image size, batch and kind of device."""
    found = []
    for run in find_runs(project) if project.is_dir() else ():
        with suppress(OSError, ValueError, KeyError, TypeError):  # a broken run tells nothing, and hides no other
            spec = json.loads((run / OURS_FOLDER / "spec.json").read_bytes())
            if _same(spec["arguments"], arguments) and (pace := _pace_of(run, device_kind)):
                found.append(((run / OURS_FOLDER / "events.jsonl").stat().st_mtime, pace))
    return max(found, key=lambda one: one[0])[1] if found else None


def _same(these: Mapping[str, Any], those: Mapping[str, Any]) -> bool:
    sizes = all(these.get(name, usual) == those.get(name, usual) for name, usual in _DEFAULTS.items())
    return sizes and Path(str(these.get("model"))).stem == Path(str(those.get("model"))).stem


def _pace_of(run: Path, device_kind: str) -> Pace | None:
    started: dict[str, Any] | None = None
    rates: list[float] = []
    epochs_s: list[float] = []
    for event in read_events(run / OURS_FOLDER / "events.jsonl", {RunStarted.kind, StepDone.kind, EpochClosed.kind}):
        if event["kind"] == RunStarted.kind:
            started, rates, epochs_s = event, [], []  # its last process: the machine may have been another
        elif event["kind"] == StepDone.kind and event["seconds"] > 0:
            rates.append(event["num_images"] / event["seconds"])
        elif event["kind"] == EpochClosed.kind:
            epochs_s.append(float(event["seconds"]))
    if started is None or not rates or not str(started["device"]).startswith(device_kind):
        return None
    return Pace(
        run=str(run),
        device=str(started["device"]),
        precision=str(started["precision"]),
        images_per_second=statistics.median(rates[-_NUM_RATES:]),
        epoch_seconds=statistics.median(epochs_s) if epochs_s else None,
        num_images=int(started["num_train_images"]),
    )

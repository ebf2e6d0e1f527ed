"""Writes `last.pt` and `best.pt` as Ultralytics' tools expect them. They are never read back to resume."""

from __future__ import annotations

import io
from collections.abc import Mapping
from copy import deepcopy
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from ultralytics import __version__ as ultralytics_version
from ultralytics.cfg import DEFAULT_CFG_DICT

from steadyolo.state.host_array import host_array
from steadyolo.state.snapshot import Snapshot
from steadyolo.vault.files import replace_file


class WeightExporter:
    """Turns snapshots into fp16 EMA weights in Ultralytics' final (stripped) format, beside training.

    Used in the writer's thread. Holds one fp16 copy of the model, into which each snapshot's EMA is copied.
    """

    def __init__(self, ema: nn.Module, folder: Path, *, train_args: Mapping[str, Any], save_period: int) -> None:
        ema_criterion = getattr(ema, "criterion", None)
        ema.criterion = None  # type: ignore[assignment]  # holds hooks and hyperparameters that no weights file needs
        self._module = deepcopy(ema).half().to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        ema.criterion = ema_criterion  # type: ignore[assignment]
        self._module.args = {k: v for k, v in train_args.items() if k in DEFAULT_CFG_DICT}  # type: ignore[assignment]
        for parameter in self._module.parameters():
            parameter.requires_grad = False
        self._folder = folder
        self._save_period = save_period
        self._train_args = self._module.args

    def __call__(self, snapshot: Snapshot) -> None:
        """Export a snapshot that was taken right after its epoch was scored; others are left alone."""
        state = snapshot.state
        if state.cursor.batch or not state.epochs_closed:
            return
        data = self._exported(snapshot)
        replace_file(self._folder / "last.pt", data)
        if state.ledger.best_epoch == state.epochs_closed:
            replace_file(self._folder / "best.pt", data)
        if self._save_period > 0 and (state.epochs_closed - 1) % self._save_period == 0:
            replace_file(self._folder / f"epoch{state.epochs_closed - 1}.pt", data)

    def restore(self, best: Snapshot) -> None:
        """Export the best snapshot of a run that came from a store: its mirrored weights may be older, or missing."""
        data = self._exported(best)
        replace_file(self._folder / "best.pt", data)
        if not (self._folder / "last.pt").exists():
            replace_file(self._folder / "last.pt", data)

    def _exported(self, snapshot: Snapshot) -> memoryview:
        own = self._module.state_dict()
        with np.errstate(over="ignore"):  # what fp16 cannot hold becomes its largest number
            for name, tensor in snapshot.tensors["ema"].items():
                target = host_array(own[name])
                np.copyto(target, host_array(tensor), casting="same_kind")
                if tensor.is_floating_point():
                    np.nan_to_num(target, copy=False)
        buffer = io.BytesIO()
        torch.save(self._checkpoint(snapshot), buffer)
        self._folder.mkdir(parents=True, exist_ok=True)
        return buffer.getbuffer()

    def _checkpoint(self, snapshot: Snapshot) -> dict[str, Any]:
        results = _columns(snapshot.files.get("results.csv", b""))
        return {
            "epoch": -1,
            "best_fitness": None,
            "stopper": None,
            "model": self._module,
            "ema": None,
            "updates": None,
            "optimizer": None,
            "scaler": None,
            "train_args": self._train_args,
            "train_metrics": {name: values[-1] for name, values in results.items() if "/" in name},
            "train_results": results,
            "date": datetime.now().astimezone().isoformat(),
            "version": ultralytics_version,
            "license": "AGPL-3.0 License (https://ultralytics.com/license)",
            "docs": "https://docs.ultralytics.com",
        }


def _columns(csv: bytes) -> dict[str, list[float]]:
    """A results file as one list a column."""
    header, *rows = csv.decode().splitlines() or [""]
    names = header.split(",")
    return {name: [float(row.split(",")[i]) for row in rows] for i, name in enumerate(names)} if rows else {}

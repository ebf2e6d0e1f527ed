"""Which processes a run is asked to have, on which devices; and a trainer's stand-in that starts them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ultralytics.cfg import get_cfg, get_save_dir
from ultralytics.utils import LOGGER, callbacks
from ultralytics.utils.torch_utils import parse_device

from steadyolo.adapters.ultralytics.arguments import check_arguments
from steadyolo.errors import UserError
from steadyolo.spec.run_spec import make_spec
from steadyolo.train.launch import launch
from steadyolo.vault.files import OURS_FOLDER

RANK_COMMAND = (sys.executable, "-m", "steadyolo.cli.rank")


def ranks_asked(overrides: Mapping[str, Any]) -> int:
    """How many processes `overrides` ask for; where they resume a run, together with what it was asked for before.

    Raises: UserError when the number contradicts the devices.
    """
    asked = {**_asked_before(overrides.get("resume")), **{k: v for k, v in overrides.items() if v is not None}}
    names = _devices(asked)
    ranks = asked.get("launch.ranks")
    if ranks is None:
        return len(names)
    num_ranks = make_spec({}, {"launch.ranks": ranks}).num_ranks or 1
    is_other = num_ranks != len(names) if len(names) > 1 else num_ranks > 1 and _is_gpu(names[0])
    if is_other:
        raise UserError(
            f"launch.ranks={num_ranks} and device={','.join(names)} contradict each other",
            remedy="name a GPU for each process, such as device=0,1; launch.ranks is for device=cpu",
        )
    return num_ranks


def device_of(arguments: Mapping[str, Any], *, local_rank: int) -> str:
    """The one device that process `local_rank` of this machine trains on. Raises: UserError where none is left."""
    names = _devices(arguments)
    if names == [""] and torch.cuda.is_available():  # each process may have been shown a GPU of its own
        return str(local_rank) if local_rank < torch.cuda.device_count() else "0"
    if not _is_gpu(names[0]):
        return names[0]
    if local_rank >= len(names):
        raise UserError(
            f"device={','.join(names)} has no device for process {local_rank} of this machine",
            remedy="name a GPU for each process, or leave device out",
        )
    return names[local_rank]


class Launching:
    """Stands in for a trainer in the process that only starts the ranks of a run. Has what `YOLO.train` asks for."""

    def __init__(self, overrides: Mapping[str, Any], num_ranks: int, hooks: Any) -> None:
        """Raises: UserError for a request that is wrong, before anything is started."""
        if hooks and hooks != callbacks.get_default_callbacks():
            LOGGER.warning(
                "callbacks that were added here do not reach the processes that train; to have them there, start this "
                "script with torchrun"
            )
        request = {name: value for name, value in overrides.items() if name != "session" and value is not None}
        if "device" in request:
            request["device"] = parse_device(request["device"])  # `-1` is resolved once, not by each of them
        if "resume" in request:
            folder = Path(request["resume"])
        else:
            arguments = {name: value for name, value in request.items() if "." not in name}
            check_arguments(arguments)
            folder = Path(get_save_dir(get_cfg(overrides=arguments))).absolute()
            request["save_dir"] = str(folder)
        self.model: Any = None
        self.validator = None
        self.best, self.last = folder / "weights" / "best.pt", folder / "weights" / "last.pt"
        self._num_ranks = num_ranks
        self._request = json.dumps(request, default=_as_text).encode()

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        """The model as it is: the processes that train load it from its file."""
        return weights

    def train(self) -> None:
        """Train in several processes. Raises: SystemExit with their exit code unless they reach the end."""
        exit_code = launch(RANK_COMMAND, num_ranks=self._num_ranks, request=self._request)
        if exit_code:
            raise SystemExit(exit_code)


def _asked_before(run: Any) -> dict[str, Any]:
    spec = Path(run) / OURS_FOLDER / "spec.json" if isinstance(run, str | Path) else None
    if spec is None or not spec.is_file():
        return {}
    raw = json.loads(spec.read_text())
    return {**raw["arguments"], **raw["ours"]}


def _devices(arguments: Mapping[str, Any]) -> list[str]:
    return parse_device(arguments.get("device") or "").split(",")


def _is_gpu(name: str) -> bool:
    return name.isdigit() or (not name and torch.cuda.is_available())


def _as_text(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise UserError(
        f"{value!r} cannot be handed to the processes that train",
        remedy="start this script with torchrun, which runs it in each of them",
    )

"""`steadyolo train`: train a model, with Ultralytics' own arguments and ours."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from steadyolo.errors import UserError
from steadyolo.spec.run_spec import OURS, parse_pairs

_TASK_SUFFIXES = {"-seg": "segment", "-pose": "pose", "-obb": "obb", "-cls": "classify"}


def train(
    pairs: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE ...", help="see below")] = None,
) -> None:
    """Train a YOLO model. Any Ultralytics train argument as key=value, and dotted ones of steadyolo.

    Example: `steadyolo train data=pcb.yaml model=yolo11n.pt epochs=100 imgsz=640 save.every=30s`

    Stopped by SIGTERM, SIGINT or SIGUSR1 it saves and exits with code 75; `steadyolo resume RUN` goes on exactly there.
    """
    from steadyolo.adapters.ultralytics.arguments import known_arguments

    arguments, ours = parse_pairs(pairs or [], known_arguments())
    if not arguments and not ours:
        raise UserError(
            "nothing is given to train", remedy="run steadyolo train data=pcb.yaml model=yolo11n.pt epochs=100"
        )
    if arguments.get("resume"):
        raise UserError("resume=... is not how a run goes on", remedy="use `steadyolo resume RUN`")
    arguments = {**arguments, "task": arguments.get("task") or task_of(arguments), "mode": "train"}
    start(arguments, ours)


def start(arguments: dict[str, Any], ours: dict[str, str]) -> None:
    """Set up and run a trainer. Raises: what `SteadyTrainer` raises."""
    from steadyolo.cli.wiring import wired_trainer

    wired_trainer()(overrides={**arguments, **ours}).train()


def task_of(arguments: dict[str, Any]) -> str:
    """The task of the asked model: from its name, or from what a checkpoint says of itself."""
    from steadyolo.adapters.ultralytics.weights import task_of as task_in

    model = str(arguments.get("model") or "")
    by_name = next((task for suffix, task in _TASK_SUFFIXES.items() if suffix in model), None)
    return by_name or task_in(model) or "detect"


def settings_help() -> str:
    """Our dotted arguments, a paragraph each."""
    return "\n\n".join(f"`{name}`: {setting.help}" for name, setting in OURS.items())

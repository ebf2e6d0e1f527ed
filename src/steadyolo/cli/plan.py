"""`steadyolo plan`: what a training will need of memory and time, and what would fit, before anything is started."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console
from rich.table import Table

from steadyolo.cli.pace import Pace, measured_pace
from steadyolo.cli.train import task_of
from steadyolo.cli.units import age_text
from steadyolo.errors import UserError
from steadyolo.plan.memory import Kind
from steadyolo.spec.run_spec import make_spec, parse_pairs
from steadyolo.spec.size import size_text

if TYPE_CHECKING:
    from steadyolo.plan.memory_plan import MemoryPlan


def plan(
    pairs: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE ...", help="as for `steadyolo train`")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Predict the memory and time of a training and choose how it fits, without starting it and without a GPU.

    Example: `steadyolo plan data=pcb.yaml model=yolo11x.pt imgsz=1280 batch=32 device=0 memory.budget=24GiB`

    Example, how large a batch may be: `steadyolo plan data=pcb.yaml model=yolo11n.pt batch=auto memory.budget=8GiB`

    Labels are read from the data set; without one, `memory.boxes=N` says how many boxes a training picture has at most.
    """
    from steadyolo.adapters.ultralytics.arguments import known_arguments

    arguments, ours = parse_pairs(pairs or [], known_arguments())
    if not arguments:
        raise UserError("nothing is given to plan", remedy="run steadyolo plan data=pcb.yaml model=yolo11n.pt device=0")
    arguments["task"] = arguments.get("task") or task_of(arguments)
    console = Console()
    with nullcontext() if as_json else console.status("weighing a training step"):
        made, num_images, kind = make_plan(arguments, ours)
    project = Path(str(arguments.get("project") or "runs"))
    pace = measured_pace(project, {**arguments, "batch": made.num_batch_images}, kind)
    if as_json:
        typer.echo(json.dumps({**made.to_dict(), "pace": pace_dict(pace, num_images)}))
    else:
        print_plan(console, made, pace, num_images)


def make_plan(arguments: dict[str, Any], ours: dict[str, str]) -> tuple[MemoryPlan, int | None, str]:
    """The plan, the number of training images where it is known, and the kind of device."""
    from steadyolo.adapters.ultralytics.arguments import batch_asked, check_memory, check_request
    from steadyolo.adapters.ultralytics.memory_planning import num_recomputable, plan_memory
    from steadyolo.adapters.ultralytics.request import training_asked_for

    spec = make_spec(arguments, ours)
    check_request(arguments)
    check_memory(arguments, spec)
    if batch_asked(arguments) is None:
        arguments = {**arguments, "batch": -1}  # as Ultralytics writes `auto`
    training = training_asked_for(arguments, spec)
    layers = num_recomputable(training.model, training.task, training.num_classes)
    made = plan_memory(training, spec, is_here=False, num_layers=layers)
    return made, training.num_train_images, training.device_kind


def print_plan(console: Console, made: MemoryPlan, pace: Pace | None, num_images: int | None) -> None:
    """The plan as people read it."""
    for line in made.lines:
        console.print(line, soft_wrap=True, highlight=False)
    console.print(_table(made))
    for line in pace_lines(pace, num_images):
        console.print(line, soft_wrap=True, highlight=False)


def _table(made: MemoryPlan) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("predicted peak")
    for name in ("training", "validation"):
        table.add_column(name, justify="right")
    training, validation = made.estimate.training, made.estimate.validation
    for kind in get_args(Kind):
        sizes = [peak.by_kind.get(kind, 0) for peak in (training, validation)]
        if any(sizes):
            table.add_row(kind, *(size_text(size) for size in sizes))
    table.add_row("[bold]together", *(f"[bold]{size_text(peak.num_bytes)}" for peak in (training, validation)))
    table.add_row("[dim]reached in", *(f"[dim]{peak.moment}" for peak in (training, validation)))
    return table


def pace_lines(pace: Pace | None, num_images: int | None) -> list[str]:
    """How long an epoch will take, and where that is known from."""
    if pace is None:
        return [
            "time per epoch: unknown; no run of this model, imgsz and batch on such a device has been measured here"
        ]
    scored = "with its scoring" if pace.epoch_seconds is not None else "without scoring"
    return [
        f"time per epoch: {age_text(pace.seconds_of_epoch(num_images))} {scored} "
        f"({pace.images_per_second:.1f} images/s, measured on {pace.device} {pace.precision} in {pace.run})"
    ]


def pace_dict(pace: Pace | None, num_images: int | None) -> dict[str, Any] | None:
    """The same as JSON values; None where nothing was measured."""
    if pace is None:
        return None
    return {
        "seconds_per_epoch": pace.seconds_of_epoch(num_images),
        "images_per_second": pace.images_per_second,
        "measured_in": pace.run,
        "device": pace.device,
        "precision": pace.precision,
    }

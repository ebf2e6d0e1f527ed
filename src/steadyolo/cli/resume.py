"""`steadyolo resume`: go on with a run exactly where its newest good checkpoint has it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steadyolo.cli.train import start
from steadyolo.errors import UserError
from steadyolo.spec.run_spec import parse_pairs

_ALLOWABLE = ("dataset", "versions")


def resume(
    run: Annotated[Path, typer.Argument(help="run folder, such as runs/detect/train")],
    pairs: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE ...")] = None,
) -> None:
    """Go on with an interrupted run, exactly; or with a finished one for more epochs.

    Example: `steadyolo resume runs/detect/train`, `steadyolo resume runs/detect/train epochs=200 allow=dataset`

    What changes the mathematics of the run is refused. `allow=dataset,versions` goes on although the data or the
    packages are not those the run was made with.
    """
    from steadyolo.adapters.ultralytics.arguments import known_arguments

    if not run.is_dir():
        raise UserError(f"{run} is not a folder", remedy="name a run folder; `steadyolo runs ls` lists those there are")
    arguments, ours = parse_pairs(pairs or [], {*known_arguments(), "allow"})
    allowed = str(arguments.pop("allow", "")).replace(",", " ").split()
    if unknown := [word for word in allowed if word not in _ALLOWABLE]:
        raise UserError(f"allow={unknown[0]} is unknown", remedy=f"use one or more of {', '.join(_ALLOWABLE)}")
    start({**arguments, "task": task_of_run(run), "resume": str(run)}, {**ours, "resume.allow": ",".join(allowed)})


def task_of_run(run: Path) -> str:
    """The task that a run folder's spec names."""
    import json

    spec = run / "steadyolo" / "spec.json"
    if not spec.is_file():
        raise UserError(
            f"{run} is not a steadyolo run: it has no steadyolo/spec.json",
            remedy="name a run folder; `steadyolo runs ls` lists those there are",
        )
    return str(json.loads(spec.read_text())["arguments"].get("task") or "detect")

"""`steadyolo resume`: go on with a run exactly where its newest good checkpoint has it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steadyolo.cli.train import start
from steadyolo.errors import UserError
from steadyolo.spec.location import is_location
from steadyolo.spec.run_spec import parse_pairs
from steadyolo.vault.files import OURS_FOLDER

_ALLOWABLE = ("dataset", "versions", "takeover")


def resume(
    run: Annotated[
        str, typer.Argument(metavar="RUN|URL", help="run folder, or where its copies are: s3://bucket/runs/train")
    ],
    pairs: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE ...")] = None,
) -> None:
    """Go on with an interrupted run, exactly; or with a finished one for more epochs.

    Example: `steadyolo resume runs/detect/train`, `steadyolo resume runs/detect/train epochs=200 allow=dataset`

    Example, on a new machine: `steadyolo resume s3://bucket/runs/train project=/data/runs`

    What changes the mathematics of the run is refused. `allow=dataset,versions` goes on although the data or the
    packages are not those the run was made with; `allow=takeover` although another process has taken the run over,
    which then stops. A URL takes the run over by itself.
    """
    from steadyolo.adapters.ultralytics.arguments import known_arguments

    arguments, ours = parse_pairs(pairs or [], {*known_arguments(), "allow"})
    allowed = str(arguments.pop("allow", "")).replace(",", " ").split()
    if unknown := [word for word in allowed if word not in _ALLOWABLE]:
        raise UserError(f"allow={unknown[0]} is unknown", remedy=f"use one or more of {', '.join(_ALLOWABLE)}")
    if is_location(run):
        folder, moved = fetch_run(run, project=arguments.pop("project", None))
        ours = {**moved, **ours}
        allowed.append("takeover")
    else:
        folder = Path(run)
    if not folder.is_dir():
        raise UserError(f"{run} is not a folder", remedy="name a run folder; `steadyolo runs ls` lists those there are")
    start(
        {**arguments, "task": task_of_run(folder), "resume": str(folder)}, {**ours, "resume.allow": ",".join(allowed)}
    )


def fetch_run(url: str, *, project: object) -> tuple[Path, dict[str, str]]:
    """Put the run that `url` names back into a folder under `project`. Returns that, and where its tiers are now.

    Raises: DataLoss when no copy can be used, UserError where something has to be changed first.
    """
    from steadyolo.cli.places import all_copies, restored_into, warn

    kept = all_copies(url)
    folder = Path(str(project or "runs/restored")) / kept.name
    warn(f"restoring {url} into {folder}")
    restored = restored_into(folder, kept)
    warn(f"{restored.name} comes from the {restored.tier}")
    return folder, kept.changes


def task_of_run(run: Path) -> str:
    """The task that a run folder's spec names."""
    import json

    spec = run / OURS_FOLDER / "spec.json"
    if not spec.is_file():
        raise UserError(
            f"{run} is not a steadyolo run: it has no {OURS_FOLDER}/spec.json",
            remedy="name a run folder; `steadyolo runs ls` lists those there are",
        )
    return str(json.loads(spec.read_text())["arguments"].get("task") or "detect")

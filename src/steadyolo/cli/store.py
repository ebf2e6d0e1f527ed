"""`steadyolo store`: what is kept in a store, whether it is whole, and how to get it back."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from steadyolo.cli import store_provision
from steadyolo.cli.doctor import table as findings_table
from steadyolo.cli.places import all_copies, named_runs, pushed, restored_into
from steadyolo.cli.units import age_text
from steadyolo.errors import Transient
from steadyolo.spec.location import parse_location
from steadyolo.spec.size import size_text
from steadyolo.vault.files import OURS_FOLDER
from steadyolo.vault.remote_run import RemoteRun

store_app = typer.Typer(no_args_is_help=True, help="Copies of runs in a bucket or on another disk.")

store_app.command("provision")(store_provision.provision)

Url = Annotated[str, typer.Argument(metavar="URL", help="store or run, such as s3://bucket/runs or …/runs/train")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@store_app.command("ls")
def ls(url: Url, as_json: Json = False) -> None:
    """List the runs of a store, or the copies of one run.

    Example: `steadyolo store ls s3://bucket/runs`, `steadyolo store ls s3://bucket/runs/train`
    """
    from steadyolo.vault.upkeep import sizes

    console = Console()
    with console.status("looking"):
        runs = named_runs(url)
        found = [_described(run, sizes(run, run.copies())) for run in runs]
    if as_json:
        typer.echo(json.dumps({"runs": found}))
        return
    if len(found) == 1:
        _print_copies(console, found[0])
        return
    table = Table(box=None, padding=(0, 2))
    for column in ("run", "newest copy", "copies", "size", "written by", "since"):
        table.add_column(column, overflow="fold")
    for run in found:
        newest = run["copies"][-1]["name"] if run["copies"] else "none yet"
        size = size_text(sum(copy["num_bytes"] for copy in run["copies"]))
        table.add_row(run["name"], newest, str(len(run["copies"])), size, run["host"], run["since"])
    console.print(table)


@store_app.command("verify")
def verify(url: Url, as_json: Json = False) -> None:
    """Read every byte of every copy and compare it with what was sent. Exit code 1 when something is bad.

    Example: `steadyolo store verify s3://bucket/runs/train`
    """
    from steadyolo.vault.upkeep import verify_all

    _read(url, verify_all, as_json=as_json)


@store_app.command("scrub")
def scrub(
    url: Url,
    share: Annotated[
        float, typer.Option(help="part of all bytes that this call reads; 0.04 daily: all in 25 days")
    ] = 0.04,
    as_json: Json = False,
) -> None:
    """Read the next share of all copies; calls go on where the last one ended. Exit code 1 when something is bad.

    Example, daily from cron: `steadyolo store scrub s3://bucket/runs --share 0.04`
    """
    from steadyolo.vault import upkeep

    _read(url, lambda run: upkeep.scrub(run, share), as_json=as_json)


@store_app.command("prune")
def prune(
    url: Url,
    keep_last: Annotated[int, typer.Option(min=1, help="newest good copies to keep; the best is kept beside them")] = 5,
    apply: Annotated[bool, typer.Option("--apply", help="Delete. Without it, only say what would be deleted.")] = False,
    as_json: Json = False,
) -> None:
    """Delete copies beyond the newest good ones, and what interrupted uploads left. A dry run unless --apply.

    Example: `steadyolo store prune s3://bucket/runs/train --keep-last 3 --apply`
    """
    from steadyolo.vault import upkeep

    told: list[dict[str, Any]] = []
    console = Console()
    for run in named_runs(url):
        with console.status(f"reading {run.url}"):
            pruning = upkeep.plan_pruning(run, keep_last)
            if apply:
                upkeep.prune(run, pruning)
        told.append(
            {
                "run": run.url,
                "applied": apply,
                "deleted": [copy.label for copy in pruning.copies],
                "orphans": list(pruning.orphans),
                "kept": [copy.label for copy in pruning.kept],
                "bad": {found.what: found.why for found in pruning.bad},
            }
        )
    if as_json:
        typer.echo(json.dumps({"runs": told}))
        return
    for entry in told:
        verb = "deleted" if apply else "would delete"
        console.print(f"{entry['run']}: {verb} {len(entry['deleted'])} copies and {len(entry['orphans'])} left-overs")
        for label in entry["deleted"]:
            console.print(f"  {label}")
        _print_bad(console, entry["bad"])
    if not apply:
        console.print("nothing was deleted; add --apply to do it")


@store_app.command("restore")
def restore(
    url: Url,
    into: Annotated[Path, typer.Option(help="folder that the run's folder is put into")] = Path("runs/restored"),
    as_json: Json = False,
) -> None:
    """Put a run's folder back: its files and the newest checkpoint that verifies in any place that keeps it.

    Example: `steadyolo store restore s3://bucket/runs/train --into /data/runs`
    """
    started = time.monotonic()
    kept = all_copies(url)
    folder = into / kept.name
    restored = restored_into(folder, kept)
    seconds = time.monotonic() - started
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "seconds": seconds, **restored.told()}))
    else:
        typer.echo(f"{folder}: {restored.name} from the {restored.tier}, in {age_text(seconds)}")


@store_app.command("drill")
def drill(url: Url, as_json: Json = False) -> None:
    """Rehearse the loss of a machine: restore into a temporary folder, check all of it, say how long it took.

    Example, weekly from cron: `steadyolo store drill s3://bucket/runs/train`
    """
    from steadyolo.vault.checkpoints import Checkpoints

    started = time.monotonic()
    kept = all_copies(url)
    with tempfile.TemporaryDirectory(prefix="steadyolo-drill-") as temporary:
        folder = Path(temporary) / "run"
        restored = restored_into(folder, kept)
        Checkpoints(folder / OURS_FOLDER / "checkpoints", writer_id="drill").verify(restored.name)
        num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    seconds = time.monotonic() - started
    if as_json:
        typer.echo(json.dumps({"seconds": seconds, "num_bytes": num_bytes, **restored.told()}))
        return
    typer.echo(
        f"the run can be restored: {restored.name} from the {restored.tier}, {size_text(num_bytes)} in {seconds:.1f} s"
    )


@store_app.command("doctor")
def doctor(url: Url, as_json: Json = False) -> None:
    """Say what differs from a bucket that a careful engineer would set up. Exit code 1 where something is a problem.

    Example: `steadyolo store doctor s3://bucket/runs`
    """
    findings = store_provision.examine_bucket(parse_location(url))
    healthy = all(finding.level != "problem" for finding in findings)
    if as_json:
        typer.echo(json.dumps({"ok": healthy, "findings": [asdict(finding) for finding in findings]}))
    else:
        Console().print(findings_table(findings))
    raise typer.Exit(0 if healthy else 1)


@store_app.command("push")
def push(
    run: Annotated[Path, typer.Argument(help="run folder, such as runs/detect/train")],
    minutes: Annotated[float, typer.Option(min=0.01, help="give up after so long; what was sent stays")] = 60.0,
) -> None:
    """Send what a run's places still lack, without training: after an outage, or before a machine is given back.

    Example: `steadyolo store push runs/detect/train`
    """
    console = Console(stderr=True)
    with console.status(f"sending {run}"):
        late = pushed(run, timeout_s=minutes * 60)
    if late:
        raise Transient(f"{' and '.join(late)} could not be reached in time", remedy="try again; it goes on from there")
    typer.echo(f"all of {run} is in every place that keeps it")


def _read(url: str, work: Any, *, as_json: bool) -> None:
    """Read runs with `work` and tell what is bad."""
    console = Console()
    told = []
    for run in named_runs(url):
        with console.status(f"reading {run.url}"):
            reading = work(run)
        told.append(
            {
                "run": run.url,
                "read_bytes": reading.num_bytes,
                "total_bytes": reading.total_bytes,
                "bad": {found.what: found.why for found in reading.bad},
            }
        )
    healthy = not any(entry["bad"] for entry in told)
    if as_json:
        typer.echo(json.dumps({"ok": healthy, "runs": told}))
    else:
        for entry in told:
            text = f"{size_text(entry['read_bytes'])} of {size_text(entry['total_bytes'])} read"
            console.print(f"{entry['run']}: {text}, {'all as it was sent' if not entry['bad'] else 'BAD'}")
            _print_bad(console, entry["bad"])
    raise typer.Exit(0 if healthy else 1)


def _described(run: RemoteRun, sizes: Any) -> dict[str, Any]:
    owner = run.owner()
    return {
        "name": run.name,
        "url": run.url,
        "host": owner.claim.host if owner else "",
        "since": owner.claim.since if owner else "",
        "token": owner.claim.token if owner else 0,
        "tiers": dict(owner.claim.tiers) if owner else {},
        "copies": [
            {"name": copy.name, "token": copy.token, "num_bytes": num_bytes} for copy, num_bytes in sizes.items()
        ],
    }


def _print_copies(console: Console, run: dict[str, Any]) -> None:
    console.print(f"{run['url']}: written by {run['host']} since {run['since']} (session {run['token']})")
    table = Table("copy", "session", "size", box=None, padding=(0, 2))
    for copy in run["copies"]:
        table.add_row(copy["name"], str(copy["token"]), size_text(copy["num_bytes"]))
    console.print(table)
    for tier, url in run["tiers"].items():
        console.print(f"  {tier}: {url}")


def _print_bad(console: Console, bad: dict[str, str]) -> None:
    for label, why in bad.items():
        console.print(f"  {label}: {why}", style="red")

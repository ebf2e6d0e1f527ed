"""`steadyolo store provision`: set up the bucket behind a store, with care; and what `store doctor` finds about it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated, Any

import typer

from steadyolo.cli.doctor import Finding
from steadyolo.cli.provider_tools import NOT_S3, steps_elsewhere
from steadyolo.errors import UserError
from steadyolo.plan.bucket import Answer, Judged, Unreadable, Unsupported
from steadyolo.plan.bucket_lifecycle import CleanUp, rules_that_delete
from steadyolo.plan.bucket_policy import policies
from steadyolo.plan.bucket_settings import Replication, replicas_in
from steadyolo.spec.bucket import (
    Lifecycle,
    Lock,
    Replica,
    WantedBucket,
    encryption_of,
    parse_archive,
    parse_days,
    parse_lock,
    wanted_bucket,
)
from steadyolo.spec.location import Location, parse_location

_LOOK = "look with the credentials that manage the bucket"


def provision(
    url: Annotated[str, typer.Argument(help="the store, such as s3://bucket/prefix?region=eu-central-1&sse=kms:KEY")],
    apply: Annotated[bool, typer.Option("--apply", help="Make the changes; without it they are only shown.")] = False,
    infrequent: Annotated[str, typer.Option(metavar="DAYS|never", help="until infrequent access")] = "30",
    archive: Annotated[
        str,
        typer.Option(metavar="DAYS[:CLASS]|never", help="until the archive; 90:GLACIER_IR needs no thawing"),
    ] = "90:GLACIER",
    old_versions: Annotated[str, typer.Option(metavar="DAYS|never", help="how long they are kept")] = "30",
    partial_uploads: Annotated[str, typer.Option(metavar="DAYS|never", help="how long they are kept")] = "7",
    lock: Annotated[
        str,
        typer.Option(
            metavar="MODE:DAYS|none",
            help="no deletion for so long: governance, except by a role with that right; compliance, by nobody, "
            "which cannot be undone; none leaves it as it is",
        ),
    ] = "governance:30",
    replica: Annotated[str, typer.Option(metavar="URL", help="bucket elsewhere that everything is copied to")] = "",
    replication_role: Annotated[str, typer.Option(metavar="ARN", help="the role that the store copies with")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what is to be changed about the bucket of a store, and with `--apply` change it and read it back.

    Versions, encryption (`sse` of the URL), no public access, lifecycle, object lock, replication; rules of others are
    kept and what is stronger stays. Prints the least rights that the training role needs. Exit code 1 where a change
    was made and does not show.

    Example: `steadyolo store provision s3://pcb-runs/line-3?region=eu-central-1`

    Example: `steadyolo store provision s3://pcb-runs/line-3 --archive never --lock governance:14 --apply`
    """
    location = parse_location(url)
    archive_days, archive_class = parse_archive(archive)
    lifecycle = Lifecycle(
        num_days_to_infrequent=parse_days(infrequent, option="--infrequent"),
        num_days_to_archive=archive_days,
        archive_class=archive_class,
        num_days_of_old_versions=parse_days(old_versions, option="--old-versions"),
        num_days_of_partial_uploads=parse_days(partial_uploads, option="--partial-uploads"),
    )
    if location.scheme != "s3":
        _print_elsewhere(location, lifecycle, as_json=as_json)
        raise typer.Exit(1 if apply else 0)
    asked_lock, asked_replica = parse_lock(lock), _replica(replica, replication_role)
    from steadyolo.adapters.objects.bucket import S3Bucket, look
    from steadyolo.adapters.objects.bucket import provision as carry_out

    bucket = S3Bucket(location)
    wanted = wanted_bucket(location, region=bucket.region, lifecycle=lifecycle, lock=asked_lock, replica=asked_replica)
    judged = carry_out(bucket, wanted) if apply else look(bucket, wanted)
    if as_json:
        told = {"url": str(location), "applied": apply, "settings": [asdict(one) for one in judged]}
        more = {"rules_that_delete": _deleting(judged, wanted), "policies": policies(wanted)}
        typer.echo(json.dumps({**told, **more}, default=str))
    else:
        typer.echo("\n".join(_lines(judged, applied=apply)))
        for rule in _deleting(judged, wanted):
            typer.echo(f"problem: {_deleting_finding(rule).text}; {_deleting_finding(rule).remedy}")
        for role, policy in policies(wanted).items():
            typer.echo(f"\npolicy of the role that may {role}:\n{json.dumps(policy, indent=2)}")
    if apply and any(one.status in {"differs", "unreadable"} for one in judged):
        raise typer.Exit(1)


def examine_bucket(location: Location) -> list[Finding]:
    """What differs about the bucket of a store from what `provision` would set up by default. Changes nothing."""
    if location.scheme != "s3":
        text = NOT_S3[location.scheme]
        if location.scheme == "file":
            return [Finding("bucket", "ok", text)]
        return [Finding("bucket", "warning", text, f"see what to look at: {_command(location)}")]
    from steadyolo.adapters.objects.bucket import S3Bucket, look

    bucket = S3Bucket(location)
    wanted = wanted_bucket(location, region=bucket.region, lock=Lock())
    judged = look(bucket, wanted)
    if judged[0].setting == "bucket":
        remedy = f"create it: {_command(location)} --apply"
        return [Finding("bucket", "problem", f"there is no bucket {location.bucket}", remedy)]
    return [
        *(_finding(location, one) for one in judged),
        _replication_finding(bucket.read(Replication.reading), location),
        *(_deleting_finding(rule) for rule in _deleting(judged, wanted)),
    ]


def _finding(location: Location, judged: Judged) -> Finding:
    name = f"bucket {judged.setting}"
    match judged.status:
        case "holding":
            return Finding(name, "ok", judged.wanted)
        case "differs":
            text = f"wanted: {judged.wanted}; there: {_there(judged)[:200]}"
            return Finding(name, "warning", text, f"see what would change: {_command(location)}")
        case "unsupported":
            text = f"wanted: {judged.wanted}; {judged.why}"
            return Finding(name, "warning", text, "look for it among the provider's own settings")
        case _:
            return Finding(name, "warning", judged.why, _LOOK)


def _replication_finding(answer: Answer, location: Location) -> Finding:
    name, remedy = "bucket replication", f"keep a second copy: store.replica=URL, or {_command(location)} --replica URL"
    match answer:
        case Unreadable(why):
            return Finding(name, "warning", why, _LOOK)
        case Unsupported(why):
            return Finding(name, "warning", why, remedy)
        case told if replicas := replicas_in(told):
            return Finding(name, "ok", f"to {', '.join(replicas)}")
        case _:
            return Finding(name, "warning", "none", remedy)


def _deleting(judged: Iterable[Judged], wanted: WantedBucket) -> list[str]:
    told = next((one.found for one in judged if one.setting == CleanUp.name and one.found), {})
    return rules_that_delete(told, wanted.prefix)


def _deleting_finding(rule: str) -> Finding:
    text = f"the lifecycle rule {rule!r} deletes checkpoints one day"
    return Finding("bucket rules", "problem", text, "remove it, or narrow its prefix")


def _command(location: Location) -> str:
    return f"steadyolo store provision {shlex.quote(str(location))}"


def _replica(url: str, role: str) -> Replica | None:
    if not url and not role:
        return None
    if not url or not role:
        raise UserError(
            "replication needs a bucket and a role",
            remedy="give both: --replica s3://BUCKET --replication-role arn:aws:iam::ACCOUNT:role/NAME",
        )
    location = parse_location(url)
    if location.scheme != "s3" or "endpoint" in location.options:
        raise UserError(
            "only a bucket of the same provider can be replicated to by the store itself",
            remedy="use store.replica=URL when training: it copies to any other place",
        )
    return Replica(bucket=location.bucket, role=role, encryption=encryption_of(location))


def _lines(judged: Iterable[Judged], *, applied: bool) -> Iterable[str]:
    for one in judged:
        yield f"{one.status:<11}  {one.setting}: {one.wanted}"
        if one.why:
            yield f"{'':<13}why:  {one.why}"
        if one.status != "holding":
            yield f"{'':<13}now:  {_there(one)}"
        if one.change:
            sent = "sent" if applied else "send"
            yield f"{'':<13}{sent}: {one.change.operation} {json.dumps(one.change.parameters, default=str)}"
    if not applied:
        yield "\nnothing was changed; --apply makes these changes"


def _there(judged: Judged) -> str:
    if judged.found is None:
        return "not there" if judged.setting == "bucket" else "not known"
    return json.dumps(judged.found, default=str) if judged.found else "not set"


def _print_elsewhere(location: Location, lifecycle: Lifecycle, *, as_json: bool) -> None:
    steps: dict[str, Any] = steps_elsewhere(location, lifecycle)
    if as_json:
        told = {"url": str(location), "applied": False, "why": NOT_S3[location.scheme], "by_hand": steps}
        typer.echo(json.dumps(told))
        return
    typer.echo(f"{NOT_S3[location.scheme]}; what to do by hand:")
    for setting, step in steps.items():
        typer.echo(f"  {setting}: {step}")

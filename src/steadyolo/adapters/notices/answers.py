"""What the metadata services' answers mean: from a body to the notices in it. Pure.

A body of None is an answer that there is nothing (404). Raises, everywhere: Garbled for what the service cannot have
meant. `seen_at` is when the body was asked for; a notice without a time leaves what its provider promises from then on.

Sources: "Spot Instance interruption notices" and "EC2 instance rebalance recommendations" (AWS), "Spot VMs" and "Get
live migration notices" (Google), "Scheduled Events for Linux VMs" (Azure), "Instance metadata" of ECS (Alibaba).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from steadyolo.adapters.notices.notice import Notice, Provider

PROMISED_S: Mapping[Provider, float] = {"aws": 120.0, "google": 30.0, "azure": 30.0, "alibaba": 300.0}
_AZURE_ENDINGS = {"Preempt", "Terminate", "Reboot", "Redeploy"}  # Freeze is a pause of seconds
_GOOGLE_STAYS = {"NONE", "MIGRATE_ON_HOST_MAINTENANCE"}


class Garbled(ValueError):
    """An answer that makes no sense."""


def aws_action(body: str | None, *, seen_at: datetime) -> tuple[Notice, ...]:
    """Of `spot/instance-action`, such as `{"action": "terminate", "time": "2017-09-18T08:22:00Z"}`."""
    if body is None:
        return ()
    said = _json_object(body)
    action, at = said.get("action"), said.get("time")
    if not isinstance(action, str) or not action:
        raise Garbled(f"no action in {_short(body)}")
    deadline_at = _utc(at) or _promised("aws", seen_at)
    return (Notice(provider="aws", kind=action.lower(), deadline_at=deadline_at, text=f"{action} at {at}"),)


def aws_rebalance(body: str | None) -> tuple[Notice, ...]:
    """Of `events/recommendations/rebalance`: the risk of an interruption has grown; nothing is decided."""
    if body is None:
        return ()
    at = _json_object(body).get("noticeTime")
    if _utc(at) is None:
        raise Garbled(f"no noticeTime in {_short(body)}")
    return (Notice(provider="aws", kind="rebalance", deadline_at=None, text=f"rebalance recommended at {at}"),)


def google_preempted(body: str | None, *, seen_at: datetime) -> tuple[Notice, ...]:
    """Of `instance/preempted`: TRUE or FALSE."""
    match (body or "FALSE").strip().upper():
        case "FALSE":
            return ()
        case "TRUE":
            return (
                Notice(
                    provider="google",
                    kind="preempt",
                    deadline_at=_promised("google", seen_at),
                    text="instance preempted",
                ),
            )
    raise Garbled(f"neither TRUE nor FALSE but {_short(body or '')}")


def google_maintenance(body: str | None, *, seen_at: datetime) -> tuple[Notice, ...]:
    """Of `instance/maintenance-event`: a machine that cannot be moved is stopped."""
    said = (body or "NONE").strip()
    if said in _GOOGLE_STAYS:
        return ()
    if not said.startswith("TERMINATE"):
        raise Garbled(f"no maintenance event: {_short(said)}")
    return (Notice(provider="google", kind="terminate", deadline_at=_promised("google", seen_at), text=said),)


def azure_name(body: str | None) -> str:
    """Of `instance/compute/name`: what events call this machine."""
    name = (body or "").strip()
    if not re.fullmatch(r"[\w.-]{1,80}", name):
        raise Garbled(f"no name of a machine: {_short(name)}")
    return name


def azure_events(body: str | None, *, machine: str, seen_at: datetime) -> tuple[Notice, ...]:
    """Of `scheduledevents`: those that end `machine`. Other machines of a set are told of too, and are left out."""
    if body is None:
        return ()
    listed = _json_object(body).get("Events")
    if not isinstance(listed, list):
        raise Garbled(f"no Events in {_short(body)}")
    found = []
    for event in listed:
        if not isinstance(event, dict) or not isinstance(event.get("Resources"), list):
            raise Garbled(f"no event of a machine: {_short(repr(event))}")
        kind = str(event.get("EventType"))
        meant = machine.lower() in (str(name).lower() for name in event["Resources"])
        if kind in _AZURE_ENDINGS and meant:
            deadline_at = _http_date(event.get("NotBefore")) or _promised("azure", seen_at)
            text = f"{kind} {event.get('EventId')}"  # not its time, which is gone once the event has started
            found.append(Notice(provider="azure", kind=kind.lower(), deadline_at=deadline_at, text=text))
    return tuple(found)


def alibaba_termination(body: str | None) -> tuple[Notice, ...]:
    """Of `instance/spot/termination-time`, such as 2018-04-07T17:03:00Z; empty while there is none."""
    said = (body or "").strip()
    if not said:
        return ()
    deadline_at = _utc(said)
    if deadline_at is None:
        raise Garbled(f"no time: {_short(said)}")
    return (Notice(provider="alibaba", kind="terminate", deadline_at=deadline_at, text=f"terminate at {said}"),)


def _promised(provider: Provider, seen_at: datetime) -> datetime:
    return seen_at + timedelta(seconds=PROMISED_S[provider])


def _json_object(body: str) -> dict[str, Any]:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise Garbled(f"no JSON object: {_short(body)}")
    return said


def _utc(said: object) -> datetime | None:
    """The moment of `2018-04-07T17:03:00Z`; None for anything else."""
    try:
        return datetime.strptime(str(said), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        return None


def _http_date(said: object) -> datetime | None:
    """The moment of `Mon, 19 Sep 2016 18:29:47 GMT`; None for anything else."""
    try:
        at = parsedate_to_datetime(str(said))
    except (ValueError, OverflowError):
        return None
    return at.replace(tzinfo=at.tzinfo or UTC)


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:79] + "…")

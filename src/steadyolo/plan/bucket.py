"""What has to change about a bucket: what a store told of it, compared with what is wanted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

from steadyolo.spec.bucket import WantedBucket

Told = Mapping[str, Any]  # an answer in the names of the S3 API; empty where nothing is set
Status = Literal["holding", "differs", "unsupported", "unreadable"]


@dataclass(frozen=True, slots=True)
class Reading:
    """The request that tells of a setting, and the error that says that it is not set."""

    operation: str
    not_set: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """One request, exactly as it is sent: its name in the S3 API and its parameters."""

    operation: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Unsupported:
    """The store does not know the setting."""

    why: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The setting may be there; this role may not look."""

    why: str


Answer = Told | Unsupported | Unreadable


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One setting: what is wanted, what is there, and the change that would bring it about."""

    setting: str
    status: Status
    wanted: str
    found: Told | None = None
    change: Change | None = None
    why: str = ""


class Setting(Protocol):
    """One thing about a bucket that can be read, compared and set."""

    name: ClassVar[str]
    reading: ClassVar[Reading]

    @property
    def wanted(self) -> str: ...  # in words
    def holds(self, told: Told) -> bool: ...  # at least what is wanted is there: what is stronger is never weakened
    def change(
        self, told: Told
    ) -> Change | None: ...  # keeps what others have set; None: it would weaken what is there


def creation(wanted: WantedBucket) -> Change:
    """The request that makes the bucket."""
    parameters: dict[str, Any] = {"Bucket": wanted.name}
    if wanted.region != "us-east-1":  # which S3 refuses to be told
        parameters["CreateBucketConfiguration"] = {"LocationConstraint": wanted.region}
    if wanted.lock:
        parameters["ObjectLockEnabledForBucket"] = True  # some stores allow it only now
    return Change("CreateBucket", parameters)


def judge(setting: Setting, answer: Answer) -> Judged:
    """Whether a setting is as wanted, from what the store told of it."""
    match answer:
        case Unsupported(why):
            return Judged(setting=setting.name, status="unsupported", wanted=setting.wanted, why=why)
        case Unreadable(why):
            return Judged(setting=setting.name, status="unreadable", wanted=setting.wanted, why=why)
        case told if setting.holds(told):
            return Judged(setting=setting.name, status="holding", wanted=setting.wanted, found=told)
        case told:
            change = setting.change(told)
            return Judged(
                setting=setting.name,
                status="differs",
                wanted=setting.wanted,
                found=told,
                change=change,
                why=""
                if change
                else "what is there is stronger in part, and is not weakened: ask for at least as much",
            )


def judge_all(settings: Iterable[Setting], answers: Mapping[Reading, Answer]) -> list[Judged]:
    """Every setting judged as it is, each change made as if those before it had been carried out."""
    after, judged = dict(answers), []
    for setting in settings:
        one = judge(setting, after[setting.reading])
        was = answers[setting.reading]
        judged.append(replace(one, found=was) if isinstance(was, Mapping) else one)
        if one.change and one.found is not None:
            after[setting.reading] = {**one.found, **one.change.parameters.get("LifecycleConfiguration", {})}
    return judged

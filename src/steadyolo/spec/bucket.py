"""`WantedBucket`: what the bucket behind a store should be like."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

from steadyolo.errors import UserError
from steadyolo.spec.location import Location

LockMode = Literal["GOVERNANCE", "COMPLIANCE"]
ArchiveClass = Literal["GLACIER_IR", "GLACIER", "DEEP_ARCHIVE"]

_LEAST_DAYS_BETWEEN_CLASSES = 30  # S3 moves nothing to a colder class before, nor from there to the next


@dataclass(frozen=True, slots=True)
class StoreKeys:
    """The store encrypts what it keeps, with keys of its own (SSE-S3)."""


@dataclass(frozen=True, slots=True)
class KmsKey:
    """The store encrypts with a key of the key service (SSE-KMS); without an id, with the account's key for S3."""

    key_id: str | None = None


Encryption = StoreKeys | KmsKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifecycle:
    """What becomes of objects as they age; None is never."""

    num_days_to_infrequent: int | None = 30
    num_days_to_archive: int | None = 90
    archive_class: ArchiveClass = "GLACIER"
    num_days_of_old_versions: int | None = 30  # what was overwritten or deleted is gone after them
    num_days_of_partial_uploads: int | None = 7

    def __post_init__(self) -> None:
        given = (
            self.num_days_to_infrequent,
            self.num_days_to_archive,
            self.num_days_of_old_versions,
            self.num_days_of_partial_uploads,
        )
        if any(num_days is not None and num_days < 1 for num_days in given):
            raise UserError("a lifecycle with less than a day", remedy="use 1 day or more, or never")
        infrequent, archive, least = self.num_days_to_infrequent, self.num_days_to_archive, _LEAST_DAYS_BETWEEN_CLASSES
        if infrequent is not None and infrequent < least:
            raise UserError(f"infrequent access after {infrequent} days", remedy=f"use {least} days or more, or never")
        if infrequent is not None and archive is not None and archive < infrequent + least:
            raise UserError(
                f"infrequent access after {infrequent} days, archive after {archive}",
                remedy=f"leave {least} days between them, or give never for one of them",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """No version can be deleted for this long: in GOVERNANCE by a role with that right, in COMPLIANCE by nobody."""

    mode: LockMode = "GOVERNANCE"
    num_days: int = 30

    def __post_init__(self) -> None:
        if self.num_days < 1:
            raise UserError(f"a lock of {self.num_days} days", remedy="use 1 day or more, or the lock none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """The bucket that every object is copied to, and the role that the store takes on to do it."""

    bucket: str
    role: str  # its ARN
    encryption: Encryption = field(default_factory=StoreKeys)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"arn:[\w-]+:iam::\d{12}:role/.+", self.role):
            raise UserError(
                f"the role of replication is {self.role!r}", remedy="give its ARN: arn:aws:iam::123456789012:role/NAME"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedBucket:
    """A bucket in which the objects under `prefix` are kept; versioned, encrypted, and closed to the public."""

    name: str
    prefix: str  # "" is the whole bucket; otherwise it ends in a slash
    region: str
    encryption: Encryption = field(default_factory=StoreKeys)
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    lock: Lock | None = field(default_factory=Lock)  # None leaves it as it is
    replica: Replica | None = None  # None leaves it as it is

    def __post_init__(self) -> None:
        if self.replica is None:
            return
        if self.replica.bucket == self.name:
            raise UserError("the replica is the bucket itself", remedy="name a bucket in another region")
        replica_key = self.replica.encryption
        if isinstance(self.encryption, KmsKey) and not (isinstance(replica_key, KmsKey) and replica_key.key_id):
            raise UserError(
                "the bucket is encrypted with KMS and the replica names no key: the store would copy nothing",
                remedy="give the replica's URL sse=kms:KEY-ID, with a key of the replica's region",
            )

    @property
    def partition(self) -> str:
        """The part of the cloud that its ARNs name."""
        if self.region in {"cn-north-1", "cn-northwest-1"}:
            return "aws-cn"
        return "aws-us-gov" if self.region.startswith("us-gov-") else "aws"


def wanted_bucket(
    location: Location,
    *,
    region: str,
    lifecycle: Lifecycle | None = None,
    lock: Lock | None = None,
    replica: Replica | None = None,
) -> WantedBucket:
    """What the bucket of an S3 `location` should be like; how it encrypts is what the URL says."""
    return WantedBucket(
        name=location.bucket,
        prefix=f"{location.path}/" if location.path else "",
        region=region,
        encryption=encryption_of(location),
        lifecycle=lifecycle or Lifecycle(),
        lock=lock,
        replica=replica,
    )


def encryption_of(location: Location) -> Encryption:
    """The default encryption that goes with the `sse` of a URL; a key of the customer's comes with each request."""
    kind, _, key_id = location.options.get("sse", "s3").partition(":")
    return KmsKey(key_id or None) if kind == "kms" else StoreKeys()


def parse_days(text: str, *, option: str) -> int | None:
    """A number of days, or None for `never`. Raises: UserError for anything else."""
    if text.strip().lower() == "never":
        return None
    if not re.fullmatch(r"[0-9]{1,5}", text.strip()):
        raise UserError(f"{option} is {text!r}", remedy="use a number of days such as 30, or never")
    return int(text)


def parse_archive(text: str) -> tuple[int | None, ArchiveClass]:
    """Days, or `never`, and the class of the archive: `90` or `90:GLACIER_IR`. Raises: UserError for anything else."""
    days, _, name = text.partition(":")
    known = {kind.lower(): kind for kind in get_args(ArchiveClass)}
    if (name or "GLACIER").lower() not in known:
        raise UserError(f"the archive class is {name!r}", remedy=f"use {', '.join(known.values())}")
    return parse_days(days, option="the archive"), known[(name or "GLACIER").lower()]


def parse_lock(text: str) -> Lock | None:
    """`governance:30`, `compliance:30` or, to leave it as it is, `none`. Raises: UserError for anything else."""
    mode, _, days = text.strip().upper().partition(":")
    if mode == "NONE" and not days:
        return None
    if mode not in get_args(LockMode) or (days and not re.fullmatch(r"[0-9]{1,5}", days)):
        raise UserError(f"the lock is {text!r}", remedy="use governance:30, compliance:30 or none")
    return Lock(mode=cast(LockMode, mode), num_days=int(days)) if days else Lock(mode=cast(LockMode, mode))

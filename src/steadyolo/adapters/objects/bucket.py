"""The settings of a bucket, through boto3 1.44: read, set, and read back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol
from urllib.parse import urlsplit

from steadyolo.adapters.objects.client_errors import (
    client_exceptions,
    code_of,
    in_its_words,
    is_denied,
    is_unsupported,
    sorted_client_error,
)
from steadyolo.adapters.objects.opening import S3Credentials
from steadyolo.errors import Transient, UserError
from steadyolo.plan.bucket import (
    Answer,
    Change,
    Judged,
    Reading,
    Setting,
    Unreadable,
    Unsupported,
    creation,
    judge,
    judge_all,
)
from steadyolo.plan.bucket_settings import settings_of
from steadyolo.spec.bucket import WantedBucket
from steadyolo.spec.location import Location

SETTLE_S = 20.0  # S3 may tell of the former setting for a while
_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Refused:
    """The store did not carry a change out, and said why; `unsupported` when it does not know how to."""

    why: str
    unsupported: bool


class BucketDoor(Protocol):
    """The few effects that setting up a bucket needs. Raises what can only be mended elsewhere, as ours."""

    def exists(self) -> bool: ...
    def read(self, reading: Reading) -> Answer: ...
    def send(self, change: Change) -> Refused | None: ...  # None: the store says that it is done


def look(bucket: BucketDoor, wanted: WantedBucket) -> list[Judged]:
    """Every setting as it is now, with the change that would be made. Changes nothing.

    Of a bucket that is not there, the first entry is the bucket itself, and the others are those of a bare one.
    """
    settings = settings_of(wanted)
    if bucket.exists():
        return judge_all(settings, {setting.reading: bucket.read(setting.reading) for setting in settings})
    return [_missing(wanted), *judge_all(settings, {setting.reading: {} for setting in settings})]


def provision(
    bucket: BucketDoor,
    wanted: WantedBucket,
    *,
    settle_s: float = SETTLE_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Judged]:
    """Set what differs, one setting after the other; each is told as it was read back, whatever the store said.

    Raises: UserError when the bucket cannot be made or reached; what was set before an error stays set.
    """
    made = [] if bucket.exists() else [_made(bucket, wanted)]
    return made + [_carried_out(bucket, setting, settle_s, clock, sleep) for setting in settings_of(wanted)]


def _made(bucket: BucketDoor, wanted: WantedBucket) -> Judged:
    missing = _missing(wanted)
    if missing.change and (refused := bucket.send(missing.change)):
        raise UserError(
            f"the bucket {wanted.name} cannot be made: {refused.why}",
            remedy="choose another name, or use credentials that may create buckets",
        )
    return replace(missing, status="holding")


def _missing(wanted: WantedBucket) -> Judged:
    return Judged(setting="bucket", status="differs", wanted=f"in {wanted.region}", change=creation(wanted))


def _carried_out(
    bucket: BucketDoor, setting: Setting, settle_s: float, clock: Callable[[], float], sleep: Callable[[float], None]
) -> Judged:
    before = judge(setting, bucket.read(setting.reading))
    if before.change is None:
        return before
    refused = bucket.send(before.change)
    deadline = clock() + (0 if refused else settle_s)
    after = judge(setting, bucket.read(setting.reading))
    while after.status == "differs" and clock() < deadline:
        sleep(_POLL_S)
        after = judge(setting, bucket.read(setting.reading))
    if after.status != "differs":
        return replace(after, change=before.change)
    if refused:
        return replace(after, status="unsupported" if refused.unsupported else "differs", why=refused.why)
    return replace(after, why="the store said yes, and does not show it")


class S3Bucket:
    """A bucket of S3 or of a service that speaks it. Speaks to nobody before it is asked."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._name = location.bucket

    @property
    def region(self) -> str:
        """The region that the URL, or else the profile or the environment, names."""
        return str(self._client.meta.region_name)

    def exists(self) -> bool:
        prefix = f"{self._location.path}/" if self._location.path else ""
        try:  # a right that the training role has too; the answer to a HEAD would not say what is wrong
            self._client.list_objects_v2(Bucket=self._name, Prefix=prefix, MaxKeys=1)
        except client_exceptions() as error:
            if code_of(error) == "NoSuchBucket":
                return False
            raise sorted_client_error(f"looking at s3://{self._name}", error) from None
        return True

    def read(self, reading: Reading) -> Answer:
        try:
            told = self._call(reading.operation, {"Bucket": self._name})
        except client_exceptions() as error:
            if reading.not_set and code_of(error) == reading.not_set:
                return {}
            if is_unsupported(error):
                return Unsupported("the store does not know this setting")
            if is_denied(error):
                return Unreadable(f"no permission for {reading.operation}")
            raise sorted_client_error(f"{reading.operation} of s3://{self._name}", error) from None
        return {name: value for name, value in told.items() if name != "ResponseMetadata"}

    def send(self, change: Change) -> Refused | None:
        try:
            self._call(change.operation, change.parameters)
        except client_exceptions() as error:
            ours = sorted_client_error(f"{change.operation} to s3://{self._name}", error)
            if isinstance(ours, Transient) and not is_unsupported(error):
                raise ours from None
            taken_for_another = change.operation != "CreateBucket" and code_of(error).startswith("BucketAlready")
            return Refused(in_its_words(error), is_unsupported(error) or taken_for_another)  # SeaweedFS 4.48 does that
        return None

    def _call(self, operation: str, parameters: Any) -> dict[str, Any]:
        from botocore import xform_name

        answer: dict[str, Any] = getattr(self._client, xform_name(operation))(**parameters)
        return answer

    @cached_property
    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        endpoint = self._location.options.get("endpoint")
        config = Config(
            connect_timeout=5,
            read_timeout=30,
            retries={"mode": "standard", "max_attempts": 4},
            s3={"addressing_style": _addressing_style(endpoint)},
            request_checksum_calculation="when_required",  # Alibaba OSS refuses the others
            response_checksum_validation="when_required",
        )
        try:
            credentials = S3Credentials()
            credentials()  # here a clear error can still say that there are none
            region = self._location.options.get("region") or credentials.region or "us-east-1"
            return boto3.Session().client("s3", endpoint_url=endpoint, region_name=region, config=config)
        except client_exceptions() as error:
            raise sorted_client_error(f"opening s3://{self._name}", error) from None


def _addressing_style(endpoint: str | None) -> str:
    """Services by endpoint take the bucket in the path, except Alibaba OSS, which takes it only in the host's name."""
    if endpoint is None:
        return "auto"
    return "virtual" if str(urlsplit(endpoint).hostname).endswith(".aliyuncs.com") else "path"

"""What a bucket should be like is checked at the door."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from steadyolo.errors import UserError
from steadyolo.spec.bucket import (
    KmsKey,
    Lifecycle,
    Lock,
    Replica,
    StoreKeys,
    WantedBucket,
    parse_archive,
    parse_days,
    parse_lock,
    wanted_bucket,
)
from steadyolo.spec.location import parse_location

ROLE = "arn:aws:iam::123456789012:role/copy"


@pytest.mark.parametrize(
    ("url", "prefix", "encryption"),
    [
        ("s3://runs", "", StoreKeys()),
        ("s3://runs/line-3/", "line-3/", StoreKeys()),
        ("s3://runs/a/b?sse=s3", "a/b/", StoreKeys()),
        ("s3://runs?sse=c:/key", "", StoreKeys()),  # comes with each request; the bucket has a default all the same
        ("s3://runs?sse=kms", "", KmsKey()),
        ("s3://runs?sse=kms:alias/pcb", "", KmsKey("alias/pcb")),
    ],
)
def test_a_url_says_which_bucket_and_which_encryption(url: str, prefix: str, encryption: object) -> None:
    wanted = wanted_bucket(parse_location(url), region="us-east-1")
    assert (wanted.name, wanted.prefix, wanted.encryption) == ("runs", prefix, encryption)


@pytest.mark.parametrize(
    ("region", "partition"),
    [
        ("eu-west-1", "aws"),
        ("cn-north-1", "aws-cn"),
        ("cn-northwest-1", "aws-cn"),
        ("us-gov-west-1", "aws-us-gov"),
        ("cn-hangzhou", "aws"),  # not a region of AWS
    ],
)
def test_a_region_says_which_part_of_the_cloud(region: str, partition: str) -> None:
    assert WantedBucket(name="runs", prefix="", region=region).partition == partition


@pytest.mark.parametrize(("text", "days"), [("30", 30), (" 7 ", 7), ("never", None), ("NEVER", None)])
def test_days_are_read(text: str, days: int | None) -> None:
    assert parse_days(text, option="--old-versions") == days


@pytest.mark.parametrize(("text", "read"), [("90", (90, "GLACIER")), ("90:glacier_ir", (90, "GLACIER_IR"))])
def test_an_archive_is_read(text: str, read: tuple[int, str]) -> None:
    assert parse_archive(text) == read


@pytest.mark.parametrize(
    ("text", "lock"),
    [
        ("governance:30", Lock()),
        ("GOVERNANCE", Lock()),
        ("compliance:7", Lock(mode="COMPLIANCE", num_days=7)),
        ("none", None),
    ],
)
def test_a_lock_is_read(text: str, lock: Lock | None) -> None:
    assert parse_lock(text) == lock


def replicated(**more: object) -> WantedBucket:
    replica = Replica(bucket=str(more.pop("to", "copy")), role=ROLE, encryption=more.pop("with_key", StoreKeys()))  # type: ignore[arg-type]
    return WantedBucket(name="runs", prefix="", region="us-east-1", replica=replica, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make",
    [
        lambda: parse_days("-1", option="x"),
        lambda: parse_days("1.5", option="x"),
        lambda: parse_days("", option="x"),
        lambda: parse_archive("90:TAPE"),
        lambda: parse_archive("soon"),
        lambda: parse_lock("forever"),
        lambda: parse_lock("governance:long"),
        lambda: parse_lock("governance:0"),
        lambda: parse_lock("none:30"),
        lambda: Lifecycle(num_days_of_old_versions=0),
        lambda: Lifecycle(num_days_to_infrequent=29),
        lambda: Lifecycle(num_days_to_infrequent=60, num_days_to_archive=89),
        lambda: Replica(bucket="copy", role="copy"),
        lambda: replicated(to="runs"),
        lambda: replicated(encryption=KmsKey("here")),
        lambda: replicated(encryption=KmsKey("here"), with_key=KmsKey()),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(UserError):
        make()


def test_what_can_be_is_not_refused() -> None:
    Lifecycle(num_days_to_infrequent=30, num_days_to_archive=60)
    Lifecycle(num_days_to_infrequent=None, num_days_to_archive=1)
    Lifecycle(num_days_to_infrequent=60, num_days_to_archive=None)
    replicated(encryption=KmsKey("here"), with_key=KmsKey("there"))
    replicated(encryption=StoreKeys(), with_key=KmsKey("there"))

"""What has to change about a bucket, as tables: what a store tells, and the exact request that follows from it."""

from __future__ import annotations

from typing import Any

import pytest

from steadyolo.plan.bucket import Change, Judged, Setting, Unreadable, Unsupported, creation, judge, judge_all
from steadyolo.plan.bucket_lifecycle import rules_that_delete
from steadyolo.plan.bucket_policy import policies
from steadyolo.plan.bucket_settings import replicas_in, settings_of
from steadyolo.spec.bucket import KmsKey, Lifecycle, Lock, Replica, StoreKeys, WantedBucket

ROLE = "arn:aws:iam::123456789012:role/copy"
BLOCKED = dict.fromkeys(("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True)
CLEAN_UP = {
    "ID": "steadyolo clean-up line-3/",
    "Status": "Enabled",
    "Filter": {"Prefix": "line-3/"},
    "NoncurrentVersionExpiration": {"NoncurrentDays": 30},
    "Expiration": {"ExpiredObjectDeleteMarker": True},
    "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
}
TIERS = {
    "ID": "steadyolo tiers line-3/",
    "Status": "Enabled",
    "Filter": {"Prefix": "line-3/"},
    "Transitions": [{"Days": 30, "StorageClass": "STANDARD_IA"}, {"Days": 90, "StorageClass": "GLACIER"}],
}
FOREIGN = {"ID": "logs", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 3}}
COPY = {
    "ID": "steadyolo line-3/",
    "Status": "Enabled",
    "Priority": 1,
    "Filter": {"Prefix": "line-3/"},
    "DeleteMarkerReplication": {"Status": "Disabled"},
    "Destination": {"Bucket": "arn:aws:s3:::copy"},
}


def wanted(**more: Any) -> WantedBucket:
    return WantedBucket(**{"name": "runs", "prefix": "line-3/", "region": "eu-west-1", **more})


def setting(name: str, of: WantedBucket) -> Setting:
    return next(setting for setting in settings_of(of) if setting.name == name)


def judged(name: str, told: dict[str, Any], **more: Any) -> Judged:
    return judge(setting(name, wanted(**more)), told)


def encrypted(algorithm: str, key_id: str | None = None, **more: Any) -> dict[str, Any]:
    default = {"SSEAlgorithm": algorithm, **({"KMSMasterKeyID": key_id} if key_id else {})}
    rule = {"ApplyServerSideEncryptionByDefault": default, **more}
    return {"ServerSideEncryptionConfiguration": {"Rules": [rule]}}


def locked(**retention: Any) -> dict[str, Any]:
    rule = {"Rule": {"DefaultRetention": retention}} if retention else {}
    return {"ObjectLockConfiguration": {"ObjectLockEnabled": "Enabled", **rule}}


def copied(*rules: dict[str, Any], role: str = ROLE) -> dict[str, Any]:
    return {"ReplicationConfiguration": {"Role": role, "Rules": list(rules)}}


REPLICA = Replica(bucket="copy", role=ROLE)
KEY = "11111111-2222"
ARN = f"arn:aws:kms:eu-west-1:123456789012:key/{KEY}"


@pytest.mark.parametrize(
    ("name", "told", "more", "holds"),
    [
        ("versioning", {"Status": "Enabled"}, {}, True),
        ("versioning", {"Status": "Suspended"}, {}, False),
        ("versioning", {}, {}, False),
        ("encryption", encrypted("AES256"), {}, True),
        ("encryption", encrypted("aws:kms"), {}, True),  # stronger than asked
        ("encryption", encrypted("rot13"), {}, False),
        ("encryption", {}, {}, False),
        ("encryption", encrypted("AES256"), {"encryption": KmsKey()}, False),
        ("encryption", encrypted("aws:kms:dsse", "any"), {"encryption": KmsKey()}, True),
        ("encryption", encrypted("aws:kms", KEY), {"encryption": KmsKey(KEY)}, True),
        ("encryption", encrypted("aws:kms", ARN), {"encryption": KmsKey(KEY)}, True),
        ("encryption", encrypted("aws:kms", KEY), {"encryption": KmsKey(ARN)}, True),
        ("encryption", encrypted("aws:kms", f"x{KEY}"), {"encryption": KmsKey(KEY)}, False),
        ("encryption", encrypted("aws:kms"), {"encryption": KmsKey(KEY)}, False),
        ("public access", {"PublicAccessBlockConfiguration": BLOCKED}, {}, True),
        ("public access", {"PublicAccessBlockConfiguration": {**BLOCKED, "BlockPublicPolicy": False}}, {}, False),
        ("public access", {}, {}, False),
        ("clean-up", {"Rules": [FOREIGN, CLEAN_UP]}, {}, True),
        ("clean-up", {"Rules": [{**CLEAN_UP, "Status": "Disabled"}]}, {}, False),
        ("clean-up", {"Rules": [{**CLEAN_UP, "Expiration": {"Days": 1}}]}, {}, False),  # somebody changed our rule
        ("clean-up", {"Rules": [FOREIGN]}, {}, False),
        ("tiers", {"Rules": [{**TIERS, "Transitions": TIERS["Transitions"][::-1]}]}, {}, True),
        ("tiers", {"Rules": [{**TIERS, "Filter": {"Prefix": ""}}]}, {}, False),
        ("tiers", {"Rules": [{**TIERS, "ID": "steadyolo tiers line-4/"}]}, {}, False),
        ("tiers", {}, {}, False),
        ("object lock", locked(Mode="GOVERNANCE", Days=30), {}, True),
        ("object lock", locked(Mode="COMPLIANCE", Years=1), {}, True),  # stronger than asked
        ("object lock", locked(Mode="GOVERNANCE", Days=29), {}, False),
        ("object lock", locked(Mode="GOVERNANCE", Days=30), {"lock": Lock(mode="COMPLIANCE")}, False),
        ("object lock", locked(), {}, False),
        ("object lock", {}, {}, False),
        ("replication", copied(COPY), {"replica": REPLICA}, True),
        ("replication", copied({**COPY, "ExistingObjectReplication": {}}), {"replica": REPLICA}, True),
        ("replication", copied({**COPY, "DeleteMarkerReplication": {}}), {"replica": REPLICA}, False),
        ("replication", copied({**COPY, "Status": "Disabled"}), {"replica": REPLICA}, False),
        ("replication", copied(COPY, role=f"{ROLE}-of-another"), {"replica": REPLICA}, False),
        ("replication", {}, {"replica": REPLICA}, False),
    ],
)  # fmt: skip
def test_what_holds(name: str, told: dict[str, Any], more: dict[str, Any], holds: bool) -> None:
    found = judged(name, told, **more)
    assert found.status == ("holding" if holds else "differs")
    assert (found.change is None) == holds


@pytest.mark.parametrize(
    ("name", "told", "more", "operation", "parameters"),
    [
        ("versioning", {}, {}, "PutBucketVersioning", {"VersioningConfiguration": {"Status": "Enabled"}}),
        ("encryption", {}, {}, "PutBucketEncryption", encrypted("AES256")),
        (
            "encryption",
            encrypted("AES256", BlockedEncryptionTypes={"EncryptionType": ["SSE-C"]}),
            {"encryption": KmsKey(KEY)},
            "PutBucketEncryption",
            encrypted("aws:kms", KEY, BlockedEncryptionTypes={"EncryptionType": ["SSE-C"]}, BucketKeyEnabled=True),
        ),
        ("public access", {}, {}, "PutPublicAccessBlock", {"PublicAccessBlockConfiguration": BLOCKED}),
        (
            "tiers",
            {"Rules": [FOREIGN], "TransitionDefaultMinimumObjectSize": "varies_by_storage_class"},
            {},
            "PutBucketLifecycleConfiguration",
            {
                "LifecycleConfiguration": {"Rules": [FOREIGN, TIERS]},
                "TransitionDefaultMinimumObjectSize": "varies_by_storage_class",
            },
        ),
        (
            "tiers",
            {"Rules": [TIERS, FOREIGN]},
            {"lifecycle": Lifecycle(num_days_to_infrequent=None, num_days_to_archive=None)},
            "PutBucketLifecycleConfiguration",
            {"LifecycleConfiguration": {"Rules": [FOREIGN]}},
        ),
        (
            "tiers",
            {"Rules": [TIERS]},
            {"lifecycle": Lifecycle(num_days_to_infrequent=None, num_days_to_archive=None)},
            "DeleteBucketLifecycle",
            {},
        ),
        (
            "clean-up",
            {},
            {"lifecycle": Lifecycle(num_days_of_old_versions=None, num_days_of_partial_uploads=3)},
            "PutBucketLifecycleConfiguration",
            {
                "LifecycleConfiguration": {
                    "Rules": [
                        {
                            "ID": "steadyolo clean-up line-3/",
                            "Status": "Enabled",
                            "Filter": {"Prefix": "line-3/"},
                            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 3},
                        }
                    ]
                }
            },
        ),
        ("object lock", {}, {}, "PutObjectLockConfiguration", locked(Mode="GOVERNANCE", Days=30)),
        (
            "object lock",
            locked(Mode="GOVERNANCE", Days=3),
            {"lock": Lock(mode="COMPLIANCE", num_days=7)},
            "PutObjectLockConfiguration",
            locked(Mode="COMPLIANCE", Days=7),
        ),
        ("replication", {}, {"replica": REPLICA}, "PutBucketReplication", copied(COPY)),
        (
            "replication",
            copied({**COPY, "ID": "of others", "Priority": 7}),
            {"replica": REPLICA},
            "PutBucketReplication",
            copied({**COPY, "ID": "of others", "Priority": 7}, {**COPY, "Priority": 8}),
        ),
        (
            "replication",
            {},
            {"replica": Replica(bucket="copy", role=ROLE, encryption=KmsKey("there")), "encryption": KmsKey("here")},
            "PutBucketReplication",
            copied(
                {
                    **COPY,
                    "Destination": {
                        "Bucket": "arn:aws:s3:::copy",
                        "EncryptionConfiguration": {"ReplicaKmsKeyID": "there"},
                    },
                    "SourceSelectionCriteria": {"SseKmsEncryptedObjects": {"Status": "Enabled"}},
                }
            ),
        ),
    ],
)
def test_the_exact_request(
    name: str, told: dict[str, Any], more: dict[str, Any], operation: str, parameters: dict[str, Any]
) -> None:
    change = judged(name, told, **more).change
    assert change == Change(operation, {"Bucket": "runs", **parameters})


@pytest.mark.parametrize(
    ("region", "lock", "parameters"),
    [
        ("us-east-1", None, {}),
        ("eu-west-1", None, {"CreateBucketConfiguration": {"LocationConstraint": "eu-west-1"}}),
        ("us-east-1", Lock(), {"ObjectLockEnabledForBucket": True}),
    ],
)
def test_the_request_that_makes_a_bucket(region: str, lock: Lock | None, parameters: dict[str, Any]) -> None:
    assert creation(wanted(region=region, lock=lock)) == Change("CreateBucket", {"Bucket": "runs", **parameters})


@pytest.mark.parametrize(
    ("there", "lock"),
    [
        (locked(Mode="COMPLIANCE", Days=10), Lock(num_days=30)),
        (locked(Mode="GOVERNANCE", Days=99), Lock(mode="COMPLIANCE", num_days=30)),
    ],
)
def test_a_lock_that_is_stronger_in_part_is_not_weakened(there: dict[str, Any], lock: Lock) -> None:
    found = judged("object lock", there, lock=lock)
    assert (found.status, found.change) == ("differs", None)
    assert "not weakened" in found.why


def test_what_cannot_be_read_is_told_and_not_changed() -> None:
    tiers = setting("tiers", wanted())
    assert judge(tiers, Unsupported("no")).status == "unsupported"
    assert judge(tiers, Unreadable("no")).status == "unreadable"
    assert judge(tiers, Unreadable("no")).change is None


def test_changes_follow_one_another() -> None:
    """Each request replaces all rules, so the second has to hold what the first put in."""
    settings = settings_of(wanted())
    answers: dict[Any, Any] = {setting.reading: {} for setting in settings}
    answers[setting("tiers", wanted()).reading] = {"Rules": [FOREIGN]}
    found = {one.setting: one for one in judge_all(settings, answers)}
    for name, rules in {"clean-up": [FOREIGN, CLEAN_UP], "tiers": [FOREIGN, CLEAN_UP, TIERS]}.items():
        change = found[name].change
        assert change and change.parameters["LifecycleConfiguration"] == {"Rules": rules}
        assert found[name].found == {"Rules": [FOREIGN]}, "what is there is told as it is, not as it will be"


def test_a_lock_and_a_replica_that_nobody_asked_for_are_left_alone() -> None:
    names = {setting.name for setting in settings_of(wanted(lock=None))}
    assert names == {"versioning", "encryption", "public access", "clean-up", "tiers"}


@pytest.mark.parametrize(
    ("rule", "dangerous"),
    [
        ({**FOREIGN, "Filter": {"Prefix": ""}}, True),
        ({**FOREIGN, "Filter": {"Prefix": "line-3/run/"}}, True),
        ({**FOREIGN, "Filter": {"And": {"Prefix": "line", "Tags": []}}}, True),
        ({"ID": "old style", "Status": "Enabled", "Prefix": "line-3/", "Expiration": {"Date": "2030-01-01"}}, True),
        ({**FOREIGN, "Filter": {"Prefix": ""}, "Status": "Disabled"}, False),
        (FOREIGN, False),
        (CLEAN_UP, False),
    ],
)
def test_a_rule_that_deletes_checkpoints_is_found(rule: dict[str, Any], dangerous: bool) -> None:
    assert rules_that_delete({"Rules": [rule]}, "line-3/") == ([rule["ID"]] if dangerous else [])


def test_replicas_are_found() -> None:
    assert replicas_in(copied(COPY, {**COPY, "Status": "Disabled", "Destination": {"Bucket": "other"}})) == ["copy"]
    assert replicas_in({}) == []


# --- policies --------------------------------------------------------------------------------------------------------


def allowed(policy: dict[str, Any]) -> set[str]:
    return {action for one in policy["Statement"] if one["Effect"] == "Allow" for action in one["Action"]}


def denied(policy: dict[str, Any]) -> set[str]:
    return {action for one in policy["Statement"] if one["Effect"] == "Deny" for action in one["Action"]}


def test_the_training_role_reads_and_adds_and_takes_nothing_away() -> None:
    policy = policies(wanted())["train"]
    assert allowed(policy) == {"s3:ListBucket", "s3:GetObject", "s3:PutObject"}
    assert denied(policy) >= {
        "s3:DeleteObject",
        "s3:DeleteObjectVersion",
        "s3:BypassGovernanceRetention",
        "s3:PutBucketVersioning",
        "s3:PutLifecycleConfiguration",
    }
    under, objects = policy["Statement"][:2]
    assert under["Condition"] == {"StringLike": {"s3:prefix": "line-3/*"}}
    assert objects["Resource"] == "arn:aws:s3:::runs/line-3/*"


def test_the_pruning_role_deletes_and_can_undo() -> None:
    policy = policies(wanted())["prune"]
    assert allowed(policy) == {"s3:ListBucket", "s3:GetObject", "s3:DeleteObject"}
    assert denied(policy) >= {"s3:DeleteObjectVersion", "s3:BypassGovernanceRetention", "s3:PutLifecycleConfiguration"}


@pytest.mark.parametrize(
    ("encryption", "resource"),
    [
        (KmsKey(ARN), ARN),
        (KmsKey(KEY), f"arn:aws:kms:*:*:key/{KEY}"),
        (KmsKey("alias/pcb"), "arn:aws:kms:*:*:key/*"),
        (KmsKey("arn:aws:kms:eu-west-1:123456789012:alias/pcb"), "arn:aws:kms:*:*:key/*"),
        (KmsKey(), None),
        (StoreKeys(), None),
    ],
)
def test_a_key_is_used_only_where_there_is_one(encryption: Any, resource: str | None) -> None:
    for policy in policies(wanted(encryption=encryption)).values():
        found = [one for one in policy["Statement"] if one["Sid"] == "UseTheKey"]
        assert [one["Resource"] for one in found] == ([resource] if resource else [])
        if resource and resource.endswith("/*"):
            assert found[0]["Condition"] == {"ForAnyValue:StringEquals": {"kms:ResourceAliases": "alias/pcb"}}


def test_the_replicating_role_copies_and_does_not_delete() -> None:
    assert "replicate" not in policies(wanted())
    replica = Replica(bucket="copy", role=ROLE, encryption=KmsKey("there"))
    policy = policies(wanted(replica=replica, encryption=KmsKey("here")))["replicate"]
    assert allowed(policy) >= {"s3:ReplicateObject", "s3:GetObjectVersionForReplication", "kms:Decrypt", "kms:Encrypt"}
    assert "s3:ReplicateDelete" not in allowed(policy)


def test_a_bucket_of_china_has_arns_of_china() -> None:
    policy = policies(wanted(region="cn-north-1"))["train"]
    assert all("arn:aws-cn:" in str(one["Resource"]) for one in policy["Statement"])

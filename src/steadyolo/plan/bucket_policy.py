"""The least rights that each role needs, as policies in the language of IAM."""

from __future__ import annotations

from typing import Any

from steadyolo.spec.bucket import Encryption, KmsKey, Replica, WantedBucket

Policy = dict[str, Any]

# What takes protection away. Denied by name, so that no other policy of the role can allow it.
_NEVER = (
    "s3:BypassGovernanceRetention",
    "s3:DeleteBucket",
    "s3:DeleteBucketPolicy",
    "s3:DeleteObjectVersion",
    "s3:PutBucketObjectLockConfiguration",
    "s3:PutBucketPolicy",
    "s3:PutBucketPublicAccessBlock",
    "s3:PutBucketVersioning",
    "s3:PutEncryptionConfiguration",
    "s3:PutLifecycleConfiguration",
    "s3:PutObjectLegalHold",
    "s3:PutObjectRetention",
    "s3:PutReplicationConfiguration",
)


def policies(wanted: WantedBucket) -> dict[str, Policy]:
    """A policy for each role: the one that trains, the one that prunes, and the one that the store replicates with.

    The training role reads and adds, and deletes nothing: what it overwrites stays as an older version. The pruning
    role deletes, which leaves older versions too; only the lifecycle removes those.
    """
    train = _policy(
        _list(wanted),
        _allow("ReadAndAdd", ["s3:GetObject", "s3:PutObject"], _objects(wanted)),
        *_use_key(wanted, ["kms:Decrypt", "kms:GenerateDataKey"]),
        _deny(wanted, ["s3:DeleteObject", *_NEVER]),
    )
    prune = _policy(
        _list(wanted),
        _allow("ReadAndDelete", ["s3:GetObject", "s3:DeleteObject"], _objects(wanted)),
        *_use_key(wanted, ["kms:Decrypt"]),
        _deny(wanted, [*_NEVER]),
    )
    replicate = {"replicate": _replicate(wanted, wanted.replica)} if wanted.replica else {}
    return {"train": train, "prune": prune, **replicate}


def _replicate(wanted: WantedBucket, replica: Replica) -> Policy:
    reads = ["s3:GetObjectVersionAcl", "s3:GetObjectVersionForReplication", "s3:GetObjectVersionTagging"]
    lock = ["s3:GetObjectLegalHold", "s3:GetObjectRetention"] if wanted.lock else []
    return _policy(
        _allow("SeeWhatToCopy", ["s3:GetReplicationConfiguration", "s3:ListBucket"], _arn(wanted)),
        _allow("ReadVersions", [*reads, *lock], _objects(wanted)),
        _allow("Copy", ["s3:ReplicateObject", "s3:ReplicateTags"], f"{_arn(wanted, replica.bucket)}/*"),
        *_use_key(wanted, ["kms:Decrypt"]),
        *_use_key(wanted, ["kms:Encrypt"], replica.encryption, sid="EncryptTheCopy"),
    )


def _policy(*statements: Policy) -> Policy:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def _allow(sid: str, actions: list[str], resource: str) -> Policy:
    return {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resource}


def _deny(wanted: WantedBucket, actions: list[str]) -> Policy:
    both = [_arn(wanted), f"{_arn(wanted)}/*"]
    return {"Sid": "TakeNoProtectionAway", "Effect": "Deny", "Action": sorted(actions), "Resource": both}


def _list(wanted: WantedBucket) -> Policy:
    under = {"Condition": {"StringLike": {"s3:prefix": f"{wanted.prefix}*"}}} if wanted.prefix else {}
    return {**_allow("List", ["s3:ListBucket"], _arn(wanted)), **under}


def _use_key(
    wanted: WantedBucket, actions: list[str], encryption: Encryption | None = None, *, sid: str = "UseTheKey"
) -> list[Policy]:
    """Nothing for the store's own keys and for the account's key for S3, which its own policy opens."""
    encryption = encryption or wanted.encryption
    if not isinstance(encryption, KmsKey) or not encryption.key_id:
        return []
    key_id = encryption.key_id
    keys = f"arn:{wanted.partition}:kms:*:*"
    if key_id.startswith("arn:") and ":key/" in key_id:
        return [_allow(sid, actions, key_id)]
    alias = key_id.rpartition(":")[2]
    if not alias.startswith("alias/"):
        return [_allow(sid, actions, f"{keys}:key/{key_id}")]
    named = {"ForAnyValue:StringEquals": {"kms:ResourceAliases": alias}}
    return [{**_allow(sid, actions, f"{keys}:key/*"), "Condition": named}]


def _arn(wanted: WantedBucket, bucket: str | None = None) -> str:
    return f"arn:{wanted.partition}:s3:::{bucket or wanted.name}"


def _objects(wanted: WantedBucket) -> str:
    return f"{_arn(wanted)}/{wanted.prefix}*"

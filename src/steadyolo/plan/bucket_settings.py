"""The settings of a bucket, one type each: how it is read, when it holds, and the exact request that sets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from steadyolo.plan.bucket import Change, Reading, Setting, Told
from steadyolo.plan.bucket_lifecycle import CleanUp, Tiers
from steadyolo.spec.bucket import Encryption, KmsKey, Lock, Replica, WantedBucket

_PUBLIC = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
_STRENGTH = {"GOVERNANCE": 1, "COMPLIANCE": 2}


def settings_of(wanted: WantedBucket) -> list[Setting]:
    """The settings of a bucket in the order in which they can be set."""
    return [
        Versioning(wanted.name),
        DefaultEncryption(wanted.name, wanted.encryption),
        NoPublicAccess(wanted.name),
        CleanUp(wanted.name, wanted.prefix, wanted.lifecycle),
        Tiers(wanted.name, wanted.prefix, wanted.lifecycle),
        *([ObjectLock(wanted.name, wanted.lock)] if wanted.lock else []),
        *([Replication(wanted, wanted.replica)] if wanted.replica else []),
    ]


@dataclass(frozen=True, slots=True)
class Versioning:
    """What is overwritten or deleted stays as an older version."""

    bucket: str
    name: ClassVar[str] = "versioning"
    reading: ClassVar[Reading] = Reading("GetBucketVersioning")

    @property
    def wanted(self) -> str:
        return "older versions are kept"

    def holds(self, told: Told) -> bool:
        return told.get("Status") == "Enabled"

    def change(self, told: Told) -> Change:
        return Change("PutBucketVersioning", {"Bucket": self.bucket, "VersioningConfiguration": {"Status": "Enabled"}})


@dataclass(frozen=True, slots=True)
class DefaultEncryption:
    """What comes without a wish of its own is encrypted; KMS is at least as good as the store's own keys."""

    bucket: str
    encryption: Encryption
    name: ClassVar[str] = "encryption"
    reading: ClassVar[Reading] = Reading(
        "GetBucketEncryption", not_set="ServerSideEncryptionConfigurationNotFoundError"
    )

    @property
    def wanted(self) -> str:
        match self.encryption:
            case KmsKey(None):
                return "by KMS, with the account's key for S3"
            case KmsKey(key_id):
                return f"by KMS, with key {key_id}"
            case _:
                return "by the store, with its own keys"

    def holds(self, told: Told) -> bool:
        there = self._rule(told).get("ApplyServerSideEncryptionByDefault", {})
        algorithm, key_id = str(there.get("SSEAlgorithm", "")), str(there.get("KMSMasterKeyID", ""))
        if not isinstance(self.encryption, KmsKey):
            return algorithm == "AES256" or algorithm.startswith("aws:kms")
        asked = self.encryption.key_id
        return algorithm.startswith("aws:kms") and (asked is None or _is_key(key_id, asked))

    def change(self, told: Told) -> Change:
        default, more = {"SSEAlgorithm": "AES256"}, {}
        if isinstance(self.encryption, KmsKey):
            default = {"SSEAlgorithm": "aws:kms"}
            if self.encryption.key_id:
                default["KMSMasterKeyID"] = self.encryption.key_id
            more = {"BucketKeyEnabled": True}  # fewer requests to KMS, which are paid
        rule = {**self._rule(told), "ApplyServerSideEncryptionByDefault": default, **more}
        return Change(
            "PutBucketEncryption", {"Bucket": self.bucket, "ServerSideEncryptionConfiguration": {"Rules": [rule]}}
        )

    @staticmethod
    def _rule(told: Told) -> Told:
        rules = told.get("ServerSideEncryptionConfiguration", {}).get("Rules", [])
        return rules[0] if rules else {}


@dataclass(frozen=True, slots=True)
class NoPublicAccess:
    """Neither an access list nor a policy can open the bucket to the public."""

    bucket: str
    name: ClassVar[str] = "public access"
    reading: ClassVar[Reading] = Reading("GetPublicAccessBlock", not_set="NoSuchPublicAccessBlockConfiguration")

    @property
    def wanted(self) -> str:
        return "blocked in all four ways"

    def holds(self, told: Told) -> bool:
        there = told.get("PublicAccessBlockConfiguration", {})
        return all(there.get(name) is True for name in _PUBLIC)

    def change(self, told: Told) -> Change:
        blocked = dict.fromkeys(_PUBLIC, True)
        return Change("PutPublicAccessBlock", {"Bucket": self.bucket, "PublicAccessBlockConfiguration": blocked})


@dataclass(frozen=True, slots=True)
class ObjectLock:
    """New versions cannot be deleted for a while, not even with a stolen key that may delete."""

    bucket: str
    lock: Lock
    name: ClassVar[str] = "object lock"
    reading: ClassVar[Reading] = Reading("GetObjectLockConfiguration", not_set="ObjectLockConfigurationNotFoundError")

    @property
    def wanted(self) -> str:
        undone = ", which nobody can undo" if self.lock.mode == "COMPLIANCE" else ""
        return f"{self.lock.mode}, {self.lock.num_days} days{undone}"

    def holds(self, told: Told) -> bool:
        strength, num_days = self._there(told)
        return strength >= _STRENGTH[self.lock.mode] and num_days >= self.lock.num_days

    def change(self, told: Told) -> Change | None:
        strength, num_days = self._there(told)
        if strength > _STRENGTH[self.lock.mode] or num_days > self.lock.num_days:
            return None
        retention = {"Mode": self.lock.mode, "Days": self.lock.num_days}
        lock = {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": retention}}
        return Change("PutObjectLockConfiguration", {"Bucket": self.bucket, "ObjectLockConfiguration": lock})

    @staticmethod
    def _there(told: Told) -> tuple[int, int]:
        """How strong the mode is, and for how many days."""
        configuration = told.get("ObjectLockConfiguration", {})
        if configuration.get("ObjectLockEnabled") != "Enabled":
            return 0, 0
        retention = configuration.get("Rule", {}).get("DefaultRetention", {})
        return _STRENGTH.get(retention.get("Mode", ""), 0), retention.get("Days", 0) or 365 * retention.get("Years", 0)


@dataclass(frozen=True, slots=True)
class Replication:
    """Every new object is copied to a bucket elsewhere. Deletions are not: a mistake must not reach the copy."""

    bucket: WantedBucket
    replica: Replica
    name: ClassVar[str] = "replication"
    reading: ClassVar[Reading] = Reading("GetBucketReplication", not_set="ReplicationConfigurationNotFoundError")

    @property
    def wanted(self) -> str:
        return f"to {self.replica.bucket}, without deletions"

    def holds(self, told: Told) -> bool:
        there = told.get("ReplicationConfiguration", {})
        own = next((rule for rule in there.get("Rules", []) if rule.get("ID") == self._id), None)
        return there.get("Role") == self.replica.role and _contains(own, self._rule())

    def change(self, told: Told) -> Change:
        rules = told.get("ReplicationConfiguration", {}).get("Rules", [])
        others = [rule for rule in rules if rule.get("ID") != self._id]
        own = {**self._rule(), "Priority": 1 + max((rule.get("Priority", 0) for rule in others), default=0)}
        replication = {"Role": self.replica.role, "Rules": [*others, own]}
        return Change("PutBucketReplication", {"Bucket": self.bucket.name, "ReplicationConfiguration": replication})

    @property
    def _id(self) -> str:
        return f"steadyolo {self.bucket.prefix or '*'}"

    def _rule(self) -> dict[str, Any]:
        destination: dict[str, Any] = {"Bucket": f"arn:{self.bucket.partition}:s3:::{self.replica.bucket}"}
        rule = {
            "ID": self._id,
            "Status": "Enabled",
            "Filter": {"Prefix": self.bucket.prefix},
            "DeleteMarkerReplication": {"Status": "Disabled"},
            "Destination": destination,
        }
        if isinstance(self.bucket.encryption, KmsKey) and isinstance(self.replica.encryption, KmsKey):
            rule["SourceSelectionCriteria"] = {"SseKmsEncryptedObjects": {"Status": "Enabled"}}
            destination["EncryptionConfiguration"] = {"ReplicaKmsKeyID": self.replica.encryption.key_id}
        return rule


def replicas_in(told: Told) -> list[str]:
    """The buckets that something is replicated to, by whichever rule."""
    rules = told.get("ReplicationConfiguration", {}).get("Rules", [])
    buckets = (rule.get("Destination", {}).get("Bucket", "") for rule in rules if rule.get("Status") == "Enabled")
    return sorted({arn.rpartition(":")[2] for arn in buckets})


def _is_key(told: str, asked: str) -> bool:
    """Whether two names, each an id, an alias or the ARN of one, are of the same key."""
    return told == asked or told.endswith((f"/{asked}", f":{asked}")) or asked.endswith((f"/{told}", f":{told}"))


def _contains(found: Any, wanted: Any) -> bool:
    """Whether everything of `wanted` is in `found`, which may tell more."""
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(_contains(found.get(name), wanted[name]) for name in wanted)
    return bool(found == wanted)

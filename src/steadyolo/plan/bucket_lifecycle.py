"""The rules by which objects of a bucket age: one that cleans up, and one that moves to cheaper classes.

They are set one after the other, because not every store has the second. A request replaces all rules of a bucket, so
each repeats those of others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from steadyolo.plan.bucket import Change, Reading, Told
from steadyolo.spec.bucket import Lifecycle

_READING = Reading("GetBucketLifecycleConfiguration", not_set="NoSuchLifecycleConfiguration")
_DEFAULT_SIZE = "all_storage_classes_128K"


@dataclass(frozen=True, slots=True)
class CleanUp:
    """Old versions, and uploads that were never finished, go away after a while."""

    bucket: str
    prefix: str
    lifecycle: Lifecycle
    name: ClassVar[str] = "clean-up"
    reading: ClassVar[Reading] = _READING

    @property
    def wanted(self) -> str:
        old, partial = self.lifecycle.num_days_of_old_versions, self.lifecycle.num_days_of_partial_uploads
        return f"old versions deleted {_after(old)}, unfinished uploads {_after(partial)}"

    def holds(self, told: Told) -> bool:
        return _rule_with(told, self._id) == self._rule()

    def change(self, told: Told) -> Change:
        return _replacing(self.bucket, told, self._id, self._rule())

    @property
    def _id(self) -> str:
        return f"steadyolo clean-up {self.prefix or '*'}"

    def _rule(self) -> Told | None:
        old, partial = self.lifecycle.num_days_of_old_versions, self.lifecycle.num_days_of_partial_uploads
        actions: dict[str, Any] = {}
        if old is not None:
            actions["NoncurrentVersionExpiration"] = {"NoncurrentDays": old}
            actions["Expiration"] = {"ExpiredObjectDeleteMarker": True}  # a marker under which no version is left
        if partial is not None:
            actions["AbortIncompleteMultipartUpload"] = {"DaysAfterInitiation": partial}
        return _rule(self._id, self.prefix, actions)


@dataclass(frozen=True, slots=True)
class Tiers:
    """What has not been written for a while moves to classes that cost less to keep."""

    bucket: str
    prefix: str
    lifecycle: Lifecycle
    name: ClassVar[str] = "tiers"
    reading: ClassVar[Reading] = _READING

    @property
    def wanted(self) -> str:
        infrequent, archive = self.lifecycle.num_days_to_infrequent, self.lifecycle.num_days_to_archive
        return f"infrequent access {_after(infrequent)}, archive ({self.lifecycle.archive_class}) {_after(archive)}"

    def holds(self, told: Told) -> bool:
        return _rule_with(told, self._id) == self._rule()

    def change(self, told: Told) -> Change:
        return _replacing(self.bucket, told, self._id, self._rule())

    @property
    def _id(self) -> str:
        return f"steadyolo tiers {self.prefix or '*'}"

    def _rule(self) -> Told | None:
        moves = {
            "STANDARD_IA": self.lifecycle.num_days_to_infrequent,
            self.lifecycle.archive_class: self.lifecycle.num_days_to_archive,
        }
        transitions = [{"Days": days, "StorageClass": kind} for kind, days in moves.items() if days is not None]
        return _rule(self._id, self.prefix, {"Transitions": transitions} if transitions else {})


def rules_that_delete(told: Told, prefix: str) -> list[str]:
    """Ids of the rules, of whomever, that delete current objects under `prefix`: checkpoints would be gone one day."""
    return [
        rule.get("ID", "(without an id)")
        for rule in told.get("Rules", [])
        if rule.get("Status") == "Enabled"
        and {"Days", "Date"} & rule.get("Expiration", {}).keys()
        and (_prefix_of(rule).startswith(prefix) or prefix.startswith(_prefix_of(rule)))
    ]


def _rule(own_id: str, prefix: str, actions: Told) -> Told | None:
    """None where there is nothing to do."""
    return {"ID": own_id, "Status": "Enabled", "Filter": {"Prefix": prefix}, **actions} if actions else None


def _rule_with(told: Told, own_id: str) -> Told | None:
    """The rule with this id as `_rule` writes it: stores tell prefixes in several ways, and moves in any order."""
    found = next((rule for rule in told.get("Rules", []) if rule.get("ID") == own_id), None)
    if found is None:
        return None
    rest = {name: value for name, value in found.items() if name not in {"Prefix", "Filter"}}
    if "Transitions" in rest:
        rest["Transitions"] = sorted(rest["Transitions"], key=lambda move: move.get("Days", 0))
    return {**rest, "Filter": {**found.get("Filter", {}), "Prefix": _prefix_of(found)}}


def _prefix_of(rule: Told) -> str:
    scope = rule.get("Filter", {})
    return str(rule.get("Prefix", scope.get("Prefix", scope.get("And", {}).get("Prefix", ""))))


def _replacing(bucket: str, told: Told, own_id: str, wanted: Told | None) -> Change:
    """The request that puts in, replaces or (None) takes out our rule."""
    others = [rule for rule in told.get("Rules", []) if rule.get("ID") != own_id]
    rules = [*others, wanted] if wanted is not None else others
    if not rules:
        return Change("DeleteBucketLifecycle", {"Bucket": bucket})
    size = "TransitionDefaultMinimumObjectSize"  # a setting of others: a request without it sets the default
    kept = {size: told[size]} if told.get(size, _DEFAULT_SIZE) != _DEFAULT_SIZE else {}
    return Change(
        "PutBucketLifecycleConfiguration", {"Bucket": bucket, **kept, "LifecycleConfiguration": {"Rules": rules}}
    )


def _after(num_days: int | None) -> str:
    return "never" if num_days is None else f"after {num_days} days"

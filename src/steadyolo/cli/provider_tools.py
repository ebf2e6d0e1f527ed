"""What to do with a provider's own tools where a bucket's settings cannot be managed from here."""

from __future__ import annotations

import json

from steadyolo.spec.bucket import Lifecycle
from steadyolo.spec.location import Location

NOT_S3 = {
    "gs": "the settings of Google's buckets are not managed here",
    "az": "the settings of Azure's storage accounts are not managed here",
    "file": "a folder has no such settings",
}


def steps_elsewhere(location: Location, lifecycle: Lifecycle) -> dict[str, str]:
    """What to do for each setting, by hand, at a place that is not S3."""
    match location.scheme:
        case "gs":
            return _google(location, lifecycle)
        case "az":
            return _azure(location, lifecycle)
        case _:
            return {
                "encryption": "encrypt the disk, or add ?key=FILE to the URL, so that nothing can be read there",
                "deletion and loss": "keep a copy in an object store as well: store.replica=s3://BUCKET/PREFIX",
            }


def _google(location: Location, lifecycle: Lifecycle) -> dict[str, str]:
    update = f"gcloud storage buckets update gs://{location.bucket}"
    return {
        "bucket": f"gcloud storage buckets create gs://{location.bucket} --location=REGION",
        "versioning": f"{update} --versioning",
        "encryption": f"always on; with a key of yours: {update} --default-encryption-key=KEY",
        "public access": f"{update} --public-access-prevention --uniform-bucket-level-access",
        "clean-up, tiers": f"{update} --lifecycle-file=FILE, where FILE holds "
        + json.dumps(_google_lifecycle(location, lifecycle)),
        "object lock": f"{update} --soft-delete-duration=30d (a retention policy would forbid to overwrite as well)",
        "replication": f"gcloud transfer jobs create gs://{location.bucket} gs://REPLICA --replication",
        "training role": "roles/storage.objectUser on the bucket: to overwrite, Google asks for the right to delete",
    }


def _google_lifecycle(location: Location, lifecycle: Lifecycle) -> dict[str, object]:
    under = {"matchesPrefix": [f"{location.path}/"]} if location.path else {}
    rules = [
        ({"type": "SetStorageClass", "storageClass": "NEARLINE"}, "age", lifecycle.num_days_to_infrequent),
        ({"type": "SetStorageClass", "storageClass": "ARCHIVE"}, "age", lifecycle.num_days_to_archive),
        ({"type": "Delete"}, "daysSinceNoncurrentTime", lifecycle.num_days_of_old_versions),
        ({"type": "AbortIncompleteMultipartUpload"}, "age", lifecycle.num_days_of_partial_uploads),
    ]
    return {"rule": [{"action": act, "condition": {when: days, **under}} for act, when, days in rules if days]}


def _azure(location: Location, lifecycle: Lifecycle) -> dict[str, str]:
    service = "az storage account blob-service-properties update --account-name ACCOUNT --resource-group GROUP"
    account = "az storage account update --name ACCOUNT --resource-group GROUP"
    return {
        "bucket": f"az storage container create --account-name ACCOUNT --name {location.bucket}",
        "versioning": f"{service} --enable-versioning true",
        "encryption": f"always on; with a key of yours: {account} --encryption-key-source Microsoft.Keyvault "
        "--encryption-key-vault URI --encryption-key-name KEY",
        "public access": f"{account} --allow-blob-public-access false",
        "clean-up, tiers": "az storage account management-policy create --account-name ACCOUNT --resource-group GROUP "
        "--policy @FILE, where FILE holds " + json.dumps(_azure_lifecycle(location, lifecycle)),
        "object lock": f"{service} --enable-delete-retention true --delete-retention-days 30 "
        "(a container's immutability policy would forbid to overwrite as well)",
        "replication": "az storage account or-policy create --account-name REPLICA --resource-group GROUP "
        f"--source-account ACCOUNT --destination-account REPLICA --source-container {location.bucket} "
        "--destination-container CONTAINER",
        "training role": "a role with the data actions blobs/read, blobs/write and blobs/add/action, without "
        "blobs/delete",
    }


def _azure_lifecycle(location: Location, lifecycle: Lifecycle) -> dict[str, object]:
    moves = {"tierToCool": lifecycle.num_days_to_infrequent, "tierToArchive": lifecycle.num_days_to_archive}
    actions: dict[str, object] = {
        "baseBlob": {move: {"daysAfterModificationGreaterThan": days} for move, days in moves.items() if days}
    }
    if lifecycle.num_days_of_old_versions:
        actions["version"] = {"delete": {"daysAfterCreationGreaterThan": lifecycle.num_days_of_old_versions}}
    filters = {"blobTypes": ["blockBlob"], "prefixMatch": [f"{location.bucket}/{location.path}".rstrip("/") + "/"]}
    rule = {"name": "steadyolo", "type": "Lifecycle", "definition": {"filters": filters, "actions": actions}}
    return {"rules": [rule]}

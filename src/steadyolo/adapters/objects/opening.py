"""Opens the store that a location names. Credentials come from the provider's own chain and are kept nowhere."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steadyolo.adapters.objects.errors import sorted_errors
from steadyolo.adapters.objects.store import CloudStore
from steadyolo.errors import UserError
from steadyolo.spec.location import Location
from steadyolo.vault.folder_store import FolderStore
from steadyolo.vault.objects import ObjectStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from obstore.store import ObjectStore as Obstore
    from obstore.store import S3Credential

_CREDENTIALS_TTL = timedelta(minutes=10)  # obstore asks again five minutes before the end, at 10 ms of a core each
TIMEOUT_S = 120.0  # one request and its body
_CONNECT_TIMEOUT_S = 5.0
_RETRY_TIMEOUT_S = 20.0


def open_store(location: Location, *, timeout_s: float = TIMEOUT_S) -> ObjectStore:
    """The store at `location`, encrypted on the way where its options ask for it. Speaks to nobody yet.

    A request that is not answered within `timeout_s` fails, with its body included.
    Raises: UserError for a key that cannot be read and for options that a provider lacks.
    """
    store = _open_plain(location, timeout_s)
    if not {"key", "key_command"} & location.options.keys():
        return store
    from steadyolo.adapters.objects.sealed_store import SealedStore, key_from_command, key_from_file

    if "key" in location.options:
        return SealedStore(store, key_from_file(Path(location.options["key"])))
    return SealedStore(store, key_from_command(location.options["key_command"]))


def open_stores(
    tiers: Mapping[str, Location], *, on_failure: Callable[[str], None] | None = None
) -> dict[str, ObjectStore]:
    """The store of each tier. One that cannot be opened is left out and told `on_failure`; without that it is raised.

    Raises: as `open_store`.
    """
    stores: dict[str, ObjectStore] = {}
    for tier, location in tiers.items():
        try:
            stores[tier] = open_store(location)
        except UserError as error:
            if on_failure is None:
                raise
            on_failure(f"the {tier} is left out: {error}")
    return stores


def _open_plain(location: Location, timeout_s: float) -> ObjectStore:
    if location.scheme == "file":
        return FolderStore(Path(location.path))
    bare = str(Location(scheme=location.scheme, bucket=location.bucket, path=location.path))
    connect = {"s3": _connect_s3, "gs": _connect_google, "az": _connect_azure}[location.scheme]
    common = {
        "prefix": location.path or None,
        "client_options": {
            "connect_timeout": timedelta(seconds=min(_CONNECT_TIMEOUT_S, timeout_s)),
            "timeout": timedelta(seconds=timeout_s),
        },
        # once more for a connection that the store had closed; whether anything else may wait is for the caller to say
        "retry_config": {"max_retries": 1, "retry_timeout": timedelta(seconds=min(_RETRY_TIMEOUT_S, timeout_s))},
    }

    def connected() -> Obstore:
        with sorted_errors("open", bare):
            return connect(location, common)

    return CloudStore(bare, connected)


def _connect_s3(location: Location, common: dict[str, Any]) -> Obstore:
    from obstore.store import S3Store

    options = location.options
    config: dict[str, Any] = {"checksum_algorithm": "SHA256", **_encryption(options.get("sse"))}
    provider = S3Credentials()
    provider()  # here a clear error can still say that there are none
    if endpoint := options.get("endpoint"):
        config["endpoint"] = endpoint
        common = {
            **common,
            "client_options": {**common["client_options"], "allow_http": endpoint.startswith("http://")},
        }
    if region := options.get("region") or provider.region:
        config["region"] = region
    elif endpoint:
        config["region"] = "us-east-1"
    return S3Store(location.bucket, config=config, credential_provider=provider, **common)  # type: ignore[arg-type]


def _connect_google(location: Location, common: dict[str, Any]) -> Obstore:
    from obstore.store import GCSStore

    return GCSStore(location.bucket, **common)


def _connect_azure(location: Location, common: dict[str, Any]) -> Obstore:
    from obstore.store import AzureStore

    return AzureStore(location.bucket, **common)


def _encryption(sse: str | None) -> dict[str, str]:
    kind, _, detail = (sse or "").partition(":")
    match kind:
        case "":
            return {}
        case "s3":
            return {"server_side_encryption": "AES256"}
        case "kms":
            return {"server_side_encryption": "aws:kms", **({"sse_kms_key_id": detail} if detail else {})}
        case _:
            from steadyolo.adapters.objects.sealed_store import key_from_file

            key = base64.b64encode(key_from_file(Path(detail))).decode()
            return {"server_side_encryption": "sse-c", "sse_customer_key_base64": key}


class S3Credentials:
    """Credentials from the chain of the AWS tools: environment, profile, SSO, container and instance role.

    The chain is walked anew each time, so that a file or role that was renewed is seen without a restart.
    Obstore's own `Boto3CredentialProvider` believes one answer for 30 minutes, beyond the end of some tokens.
    """

    def __init__(self) -> None:
        self.config: dict[str, Any] = {}
        self.region: str | None = _read_chain(lambda session: session.region_name)

    def __call__(self) -> S3Credential:
        def look(session: Any) -> Any:
            found = session.get_credentials()
            return found.get_frozen_credentials() if found is not None else None

        found = _read_chain(look)
        if found is None or not found.access_key or not found.secret_key:
            raise UserError(
                "no credentials for S3 were found",
                remedy="give this machine a role, or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            )
        return {
            "access_key_id": found.access_key,
            "secret_access_key": found.secret_key,
            "token": found.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_TTL,
        }


def _read_chain(look: Callable[[Any], Any]) -> Any:
    """What `look` finds in a session of boto3 that is made now. Raises: UserError."""
    import boto3
    from botocore.exceptions import BotoCoreError

    try:
        return look(boto3.Session())
    except BotoCoreError as error:  # its text may hold a credential
        raise UserError(
            f"the credentials for S3 cannot be read: {type(error).__name__}",
            remedy="check the profile (aws configure list), or log in anew",
        ) from None

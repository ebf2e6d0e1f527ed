"""Opens the store that a location names. Credentials come from the provider's own chain and are kept nowhere."""

from __future__ import annotations

import base64
import functools
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steadyolo.adapters.objects.errors import sorted_error
from steadyolo.adapters.objects.store import CloudStore
from steadyolo.errors import UserError
from steadyolo.spec.location import Location
from steadyolo.vault.folder_store import FolderStore
from steadyolo.vault.objects import ObjectStore

if TYPE_CHECKING:
    from collections.abc import Callable

    import boto3
    from obstore.store import ObjectStore as Obstore
    from obstore.store import S3Credential

_CREDENTIALS_TTL = timedelta(minutes=10)  # obstore asks again five minutes before the end, at 10 ms of a core each
_TIMEOUTS = {"connect_timeout": "5s", "timeout": "120s"}
_RETRY: Any = {"max_retries": 1, "retry_timeout": timedelta(seconds=20)}  # a lost connection; the rest is the queue's


def open_store(location: Location) -> ObjectStore:
    """The store at `location`, encrypted on the way where its options ask for it. Speaks to nobody yet.

    Raises: UserError for a key that cannot be read and for options that a provider lacks.
    """
    store = _open_plain(location)
    if not {"key", "key_command"} & location.options.keys():
        return store
    from steadyolo.adapters.objects.sealed_store import SealedStore, key_from_command, key_from_file

    if "key" in location.options:
        return SealedStore(store, key_from_file(Path(location.options["key"])))
    return SealedStore(store, key_from_command(location.options["key_command"]))


def open_stores(tiers: Mapping[str, Location]) -> dict[str, ObjectStore]:
    """The store of each tier. Raises: as `open_store`."""
    return {tier: open_store(location) for tier, location in tiers.items()}


def _open_plain(location: Location) -> ObjectStore:
    bare = str(Location(scheme=location.scheme, bucket=location.bucket, path=location.path))
    match location.scheme:
        case "file":
            return FolderStore(Path(location.path))
        case "s3":
            sse = location.options.get("sse", "s3")
            return CloudStore(bare, functools.partial(_connect_s3, location), tags_are_md5=sse == "s3")
        case "gs":
            return CloudStore(bare, functools.partial(_connect_google, location), tags_are_md5=False)
        case _:
            return CloudStore(bare, functools.partial(_connect_azure, location), tags_are_md5=False)


def _connect_s3(location: Location) -> Obstore:
    from obstore.store import S3Store

    options = location.options
    config: dict[str, Any] = {"checksum_algorithm": "SHA256", **_encryption(options.get("sse"))}
    client: dict[str, Any] = dict(_TIMEOUTS)
    provider = S3Credentials()
    provider()  # here a clear error can still say that there are none
    if endpoint := options.get("endpoint"):
        config["endpoint"] = endpoint
        client["allow_http"] = endpoint.startswith("http://")
    if region := options.get("region") or provider.region:
        config["region"] = region
    elif endpoint:
        config["region"] = "us-east-1"
    return _made(
        lambda: S3Store(
            location.bucket,
            prefix=location.path or None,
            config=config,  # type: ignore[arg-type]
            client_options=client,  # type: ignore[arg-type]
            retry_config=_RETRY,
            credential_provider=provider,
        ),
        location,
    )


def _connect_google(location: Location) -> Obstore:
    from obstore.store import GCSStore

    return _made(
        lambda: GCSStore(
            location.bucket,
            prefix=location.path or None,
            client_options=_TIMEOUTS,  # type: ignore[arg-type]
            retry_config=_RETRY,
        ),
        location,
    )


def _connect_azure(location: Location) -> Obstore:
    from obstore.store import AzureStore

    return _made(
        lambda: AzureStore(
            location.bucket,
            prefix=location.path or None,
            client_options=_TIMEOUTS,  # type: ignore[arg-type]
            retry_config=_RETRY,
        ),
        location,
    )


def _made(make: Callable[[], Obstore], location: Location) -> Obstore:
    from obstore.exceptions import BaseError

    try:
        return make()
    except BaseError as error:
        raise sorted_error(f"opening {location.scheme}://{location.bucket}", error) from None


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
        self.config: dict[str, Any] = {}  # obstore asks for it
        self.region: str | None = self._session().region_name

    def __call__(self) -> S3Credential:
        from botocore.exceptions import BotoCoreError

        try:
            found = self._session().get_credentials()
            frozen = found.get_frozen_credentials() if found is not None else None
        except BotoCoreError as error:
            raise _unreadable(error) from None
        if frozen is None or not frozen.access_key or not frozen.secret_key:
            raise UserError(
                "no credentials for S3 were found",
                remedy="give this machine a role, or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            )
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_TTL,
        }

    @staticmethod
    def _session() -> boto3.Session:
        import boto3
        from botocore.exceptions import BotoCoreError

        try:
            return boto3.Session()
        except BotoCoreError as error:  # a profile that is not there
            raise _unreadable(error) from None


def _unreadable(error: Exception) -> UserError:
    return UserError(
        f"the credentials cannot be read: {type(error).__name__}", remedy="check AWS_PROFILE and `aws configure list`"
    )

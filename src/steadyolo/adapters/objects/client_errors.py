"""Sorts what boto3 raises by what the caller can do next. Written against botocore 1.44."""

from __future__ import annotations

from typing import Any

from steadyolo.adapters.objects.errors import known_error, plain
from steadyolo.errors import SteadyError, Transient, UserError

_DENIED = {"403", "AccessDenied", "AllAccessDisabled", "Forbidden"}
_UNSUPPORTED = {"MethodNotAllowed", "NotImplemented", "NotSupported", "OperationNotSupported", "XNotImplemented"}


def client_exceptions() -> tuple[type[Exception], ...]:
    """What a client of boto3 raises. Imported only when needed: botocore sets up loggers."""
    from botocore.exceptions import BotoCoreError, ClientError

    return BotoCoreError, ClientError, ValueError  # a ValueError for an endpoint that is no address


def code_of(error: Exception) -> str:
    """The store's own name for a refusal; empty where it did not answer with one."""
    return str(_said(error, "Error").get("Code", ""))


def is_unsupported(error: Exception) -> bool:
    """Whether the store says that it does not know what was asked."""
    return _status(error) in {405, 501} or code_of(error) in _UNSUPPORTED


def is_denied(error: Exception) -> bool:
    """Whether the store knows who asks, and does not allow it."""
    return code_of(error) in _DENIED


def in_its_words(error: Exception) -> str:
    """The store's refusal in its own words, without anything that looks like a credential."""
    message = _said(error, "Error").get("Message", "")
    return plain(f"{code_of(error)}: {message}".strip(": ") or str(error))


def sorted_client_error(what: str, error: Exception) -> SteadyError:
    """Ours for one of botocore's, with `what` was being done at the head of the message."""
    from botocore import exceptions as raised

    if is_denied(error):
        return UserError(
            f"{what}: no permission, or the bucket is somebody else's",
            remedy="use credentials that manage the bucket, which the training role's do not",
        )
    known = known_error(what, code_of(error), in_its_words(error))
    if known is not None:
        return known
    wrong_names = (raised.InvalidRegionError, raised.ParamValidationError, raised.UnknownEndpointError, ValueError)
    no_credentials = (
        raised.CredentialRetrievalError,
        raised.NoAuthTokenError,
        raised.NoCredentialsError,
        raised.PartialCredentialsError,
        raised.ProfileNotFound,
        raised.SSOError,
        raised.TokenRetrievalError,
    )
    if isinstance(error, no_credentials):
        return UserError(
            f"{what}: the credentials cannot be read ({type(error).__name__})",
            remedy="check the profile (aws configure list)",
        )
    if isinstance(error, wrong_names):
        return UserError(f"{what}: {plain(str(error))}", remedy="check the bucket's name, the region and the endpoint")
    if 400 <= _status(error) < 500 and _status(error) not in {408, 429}:
        return UserError(f"{what}: {in_its_words(error)}", remedy="change what the store names, then try again")
    return Transient(f"{what}: {in_its_words(error)}", remedy="wait, then try again; check the network and endpoint")


def _status(error: Exception) -> int:
    return int(_said(error, "ResponseMetadata").get("HTTPStatusCode", 0))


def _said(error: Exception, part: str) -> dict[str, Any]:
    """A part of the store's answer; empty where there was none."""
    said: dict[str, Any] = (getattr(error, "response", None) or {}).get(part, {})
    return said

"""Sorts what boto3 raises by what the caller can do next. Written against botocore 1.44."""

from __future__ import annotations

from botocore import exceptions as raised

from steadyolo.adapters.objects.errors import known_error, plain
from steadyolo.errors import SteadyError, Transient, UserError

_DENIED = {"403", "AccessDenied", "AllAccessDisabled", "Forbidden"}
_UNSUPPORTED = {"MethodNotAllowed", "NotImplemented", "NotSupported", "OperationNotSupported", "XNotImplemented"}
_NO_CREDENTIALS = (
    raised.CredentialRetrievalError,
    raised.NoAuthTokenError,
    raised.NoCredentialsError,
    raised.PartialCredentialsError,
    raised.ProfileNotFound,
    raised.SSOError,
    raised.TokenRetrievalError,
)
_WRONG_NAMES = (raised.InvalidRegionError, raised.ParamValidationError, raised.UnknownEndpointError, ValueError)


def code_of(error: Exception) -> str:
    """The store's own name for a refusal; empty where it did not answer with one."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, raised.ClientError) else ""


def is_unsupported(error: Exception) -> bool:
    """Whether the store says that it does not know what was asked."""
    return _status(error) in {405, 501} or code_of(error) in _UNSUPPORTED


def is_denied(error: Exception) -> bool:
    """Whether the store knows who asks, and does not allow it."""
    return code_of(error) in _DENIED


def in_its_words(error: Exception) -> str:
    """The store's refusal in its own words, without anything that looks like a credential."""
    message = error.response.get("Error", {}).get("Message", "") if isinstance(error, raised.ClientError) else ""
    return plain(f"{code_of(error)}: {message}".strip(": ") or str(error))


def sorted_client_error(what: str, error: Exception) -> SteadyError:
    """Ours for one of botocore's, with `what` was being done at the head of the message."""
    if is_denied(error):
        return UserError(
            f"{what}: no permission, or the bucket is somebody else's",
            remedy="use credentials that manage the bucket, which the training role's do not",
        )
    known = known_error(what, code_of(error)) or known_error(what, in_its_words(error))
    if known is not None:
        return known
    if isinstance(error, _NO_CREDENTIALS):
        return UserError(
            f"{what}: the credentials cannot be read ({type(error).__name__})",
            remedy="check the profile (aws configure list)",
        )
    if isinstance(error, _WRONG_NAMES):
        return UserError(f"{what}: {plain(str(error))}", remedy="check the bucket's name, the region and the endpoint")
    if 400 <= _status(error) < 500 and _status(error) not in {408, 429}:
        return UserError(f"{what}: {in_its_words(error)}", remedy="change what the store names, then try again")
    return Transient(f"{what}: {in_its_words(error)}", remedy="wait, then try again; check the network and endpoint")


def _status(error: Exception) -> int:
    if not isinstance(error, raised.ClientError):
        return 0
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))

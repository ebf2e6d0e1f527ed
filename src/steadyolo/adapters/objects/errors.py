"""Sorts what obstore raises by what the caller can do next. Written against obstore 0.12."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from obstore import exceptions as raised

from steadyolo.errors import SteadyError, Transient, UserError
from steadyolo.vault.objects import Absent, Taken


@dataclass(frozen=True, slots=True)
class _Told:
    """What a store's answer names in its own words, what that means, and what to do."""

    pattern: str
    means: str
    remedy: str


_TOLD = (  # the first whose pattern is found decides
    _Told(
        "NoSuchBucket|InvalidBucketName|ContainerNotFound|bucket does not exist",
        "the bucket does not exist",
        "check the bucket's name, or create it: steadyolo store provision URL",
    ),
    _Told(
        "RequestTimeTooSkewed",
        "this machine's clock is wrong",
        "set the clock (timedatectl set-ntp true), then try again",
    ),
    _Told(
        "ExpiredToken|TokenRefreshRequired|token (has|is) expired",
        "the credentials have expired",
        "renew them (log in again, or let the machine's role do it); a run that is training goes on and catches up",
    ),
    _Told(
        "InvalidAccessKeyId|InvalidToken|InvalidClientTokenId",
        "the store does not know the credentials",
        "check which credentials are used: environment, profile or role",
    ),
    _Told(
        "SignatureDoesNotMatch",
        "the secret of the credentials is wrong",
        "check the secret key; it is taken from the environment, profile or role",
    ),
    _Told(
        "PermanentRedirect|AuthorizationHeaderMalformed|TemporaryRedirect|IllegalLocationConstraint|301 Moved",
        "the bucket is in another region",
        "add region=… of the bucket to the URL",
    ),
    _Told(
        "InvalidObjectState|BlobArchived|BlobBeingRehydrated",
        "the object is in an archive tier",
        "restore (thaw) it first, for example with `aws s3api restore-object`; that takes minutes to hours",
    ),
    _Told(
        "KMS|kms",
        "the encryption key of the store cannot be used",
        "check sse=kms:KEY-ID, and that the role may use that key",
    ),
    _Told(
        "ServerSideEncryptionCustomer|customer.provided|SSECustomer|encryption parameters",
        "the object is encrypted with a key of the customer's",
        "give the same key: sse=c:FILE",
    ),
    _Told(
        "AccessDenied|AllAccessDisabled|AuthorizationPermissionMismatch|Forbidden",
        "no permission",
        "give the role the rights that `steadyolo store provision URL` prints",
    ),
)
_SECRETS = re.compile(
    r"(?i)((?:x-amz-)?(?:credential|signature|security-token|secret[a-z_]*|sig|access_?key[a-z_]*)\W{1,3})[^\s&\"',<>]+"
)


@contextmanager
def sorted_errors(what: str) -> Iterator[None]:
    """Turn what obstore raises into ours, with `what` was being done at the head of the message."""
    try:
        yield
    except SteadyError:
        raise
    except FileNotFoundError as error:
        known = _told(str(error))
        if known is not None and known.pattern.startswith("NoSuchBucket"):
            raise UserError(f"{what}: {known.means}", remedy=known.remedy) from None
        raise Absent(f"{what}: it is not there", remedy="check the name") from None
    except (raised.AlreadyExistsError, raised.PreconditionError):
        raise Taken(f"{what}: somebody else wrote it first", remedy="read it again") from None
    except raised.BaseError as error:
        raise sorted_error(what, error) from None  # its text may hold signed headers
    except (OSError, ValueError) as error:
        raise Transient(f"{what}: {plain(str(error))}", remedy="wait: it is tried again") from None


def sorted_error(what: str, error: Exception) -> SteadyError:
    """Ours for one of obstore's."""
    text = str(error)
    if (known := known_error(what, text)) is not None:
        return known
    if isinstance(error, raised.PermissionDeniedError):
        return UserError(
            f"{what}: no permission", remedy="give the role the rights that `steadyolo store provision URL` prints"
        )
    if isinstance(error, raised.UnauthenticatedError):
        return UserError(f"{what}: not authenticated", remedy="check the credentials: environment, profile or role")
    return Transient(f"{what}: {plain(text)}", remedy="wait: it is tried again; check the network and the store")


def known_error(what: str, text: str) -> UserError | None:
    """Ours for a store's answer that names its reason; None where the reason is not among those we know."""
    known = _told(text)
    return UserError(f"{what}: {known.means}", remedy=known.remedy) if known is not None else None


def plain(text: str) -> str:
    """The first line of a library's message, without anything that looks like a credential."""
    return _SECRETS.sub(r"\1…", " ".join(text.split("Debug source")[0].split()))[:300]


def _told(text: str) -> _Told | None:
    return next((told for told in _TOLD if re.search(told.pattern, text)), None)

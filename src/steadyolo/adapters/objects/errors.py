"""Sorts what obstore raises by what the caller can do next. Written against obstore 0.12."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from obstore import exceptions as raised

from steadyolo.errors import SteadyError, Transient, UserError
from steadyolo.vault.objects import Absent, Taken

Verb = Literal["open", "put", "put_if", "get", "list", "delete"]
_NO_CREDENTIALS = "NoCredentials"  # a code of our own


@dataclass(frozen=True, slots=True)
class _Known:
    """Codes of errors as stores give them, or words of a message, what they mean, and what to do."""

    codes: str
    means: str
    remedy: str
    words: str = r"(?!)"  # nothing


_NO_PLACE = _Known(
    r"NoSuchBucket|InvalidBucketName|ContainerNotFound|InvalidContainerName|.*ResourceName",
    "the bucket does not exist",
    "check the bucket's name and the endpoint, or create it: steadyolo store provision URL",
)
_UNKNOWN_CREDENTIALS = _Known(
    r"InvalidAccessKeyId|InvalidToken|InvalidClientTokenId|InvalidSecurity|AuthorizationHeaderMalformed",
    "the store does not know the credentials",
    "check which credentials are used: environment, profile or role",
)
_NO_PERMISSION = _Known(
    r"AccessDenied|AllAccessDisabled|Authorization\w*|InsufficientAccountPermissions|AccountIsDisabled|Forbidden",
    "no permission",
    "give the role the rights that `steadyolo store provision URL` prints",
)
_KNOWN = (  # the first that fits decides
    _Known(
        r"RequestTimeTooSkewed",
        "this machine's clock is wrong",
        "set the clock (timedatectl set-ntp true), then try again",
    ),
    _Known(
        r"ExpiredToken\w*|TokenRefreshRequired",
        "the credentials have expired",
        "renew them (log in again, or let the machine's role do it); a run that is training goes on and catches up",
        words=r"token (has|is) expired",
    ),
    _Known(
        r"PermanentRedirect|TemporaryRedirect|IllegalLocationConstraint\w*",
        "the bucket is in another region",
        "add region=… of the bucket to the URL",
        words=r"incorrectly configured region|status code: 30\d|region '?[\w-]+'? is wrong|expecting '[\w-]+'",
    ),
    _UNKNOWN_CREDENTIALS,
    _Known(
        r"SignatureDoesNotMatch|AuthenticationFailed|InvalidAuthenticationInfo",
        "the secret of the credentials is wrong",
        "check the secret key or token, which comes from the environment, profile or role, and the machine's clock",
    ),
    _Known(
        _NO_CREDENTIALS,
        "no credentials were found",
        "log in with the provider's tool, give this machine a role, or set the provider's environment variables",
        words=r"credential provider: |Account must be specified",
    ),
    _Known(
        r"InvalidObjectState|BlobArchived|BlobBeingRehydrated",
        "the object is in an archive tier",
        "restore (thaw) it first, for example with `aws s3api restore-object`; that takes minutes to hours",
    ),
    _Known(
        r"KMS[\w.]*|Kms\w*",
        "the encryption key of the store cannot be used",
        "check sse=kms:KEY-ID, and that the role may use that key",
        words=r"\bkms:\w+|\bKMS\b",
    ),
    _Known(
        r"ServerSideEncryption\w*|\w*CustomerProvidedKey\w*|BlobUsesCustomerSpecifiedEncryption",
        "the object is encrypted with a key of the customer's",
        "give the same key: sse=c:FILE",
        words=r"(?i)customer.provided|form of server.side encryption|encryption parameters",
    ),
    _NO_PERMISSION,
    _NO_PLACE,
)
_WRONG_URL = (ValueError, NotImplementedError, raised.InvalidPathError, raised.UnknownConfigurationKeyError)
_PASSES = re.compile(  # refusals that are about this one attempt
    r"RequestTimeout|BadDigest|InvalidDigest|IncompleteBody|XAmzContent\w*|OperationAborted|SlowDown|Throttl\w*|"
    r"TooManyRequests|InternalError|ServiceUnavailable|ConditionalRequestConflict|Md5Mismatch|ServerBusy"
)
_WAY = re.compile(r"Error performing \w+ (\S+) in .*? - ", re.DOTALL)
_METADATA_HOSTS = {"169.254.169.254", "metadata.google.internal", "metadata"}  # asked when nothing else was found
_STATUS = re.compile(r"status code: (\d{3}) ?([\w '-]*)")
_CODE = re.compile(r"<Code>([\w.]+)</Code>|\(code: ([\w.]+)\)")
_TEXT = re.compile(r"<Message>(.*?)</Message>", re.DOTALL)
_BREAKS = {
    "Connect": "the store cannot be reached",
    "Timeout": "the store did not answer in time",
    "Interrupted": "the connection to the store broke",
}
_BREAK = re.compile(rf"HttpError \{{\s*kind: ({'|'.join(_BREAKS)})")
_SECRETS = re.compile(
    r"(?i)((?:x-amz-)?(?:credential|signature|security-token|secret[a-z_]*|sig|access_?key[a-z_]*)\W{1,3})[^\s&\"',<>]+"
)


@contextmanager
def sorted_errors(verb: Verb, what: str) -> Iterator[None]:
    """Turn what obstore raises into ours, with what was being done at the head of the message."""
    try:
        yield
    except SteadyError:
        raise
    except (raised.BaseError, OSError, ValueError, NotImplementedError) as error:
        raise sorted_error(verb, what, error) from None  # its text may hold signed headers


def sorted_error(verb: Verb, what: str, error: Exception) -> SteadyError:
    """Ours for one of obstore's."""
    said = _Said.parse(str(error))
    doing = f"{verb.removesuffix('_if')} {what}"
    if known := said.known() or _known_by_kind(verb, error, said):
        return UserError(f"{doing}: {known.means}", remedy=known.remedy)
    if isinstance(error, FileNotFoundError):
        return Absent(f"{doing}: it is not there", remedy="check the name")
    if isinstance(error, raised.AlreadyExistsError | raised.PreconditionError) and verb == "put_if":
        return Taken(f"{doing}: somebody else wrote it first", remedy="read it again")
    if "object with invalid path" in said.told:
        return UserError(f"{doing}: {said.in_short()}", remedy="rename that object, or move it elsewhere")
    if isinstance(error, _WRONG_URL) or said.is_final or verb == "open":
        return UserError(f"{doing}: {said.in_short()}", remedy="correct the store's URL or the settings of its bucket")
    return Transient(
        f"{doing}: {said.in_short()}", remedy="wait: it is tried again; check the network and the store if it goes on"
    )


def _known_by_kind(verb: Verb, error: Exception, said: _Said) -> _Known | None:
    """What an answer means that has no code of the store's."""
    if isinstance(error, FileNotFoundError) and verb not in {"get", "delete"}:
        return _NO_PLACE
    if said.code:
        return None
    if isinstance(error, raised.PermissionDeniedError) or said.status == "403":
        return _NO_PERMISSION
    if isinstance(error, raised.UnauthenticatedError) or said.status == "401":
        return _UNKNOWN_CREDENTIALS
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    """What is in the text of an error: what the store answered, or how the way to it broke."""

    told: str
    status: str
    reason: str
    code: str
    text: str
    broken: str

    @classmethod
    def parse(cls, raw: str) -> _Said:
        told, _, details = raw.partition("Debug source")
        way = _WAY.search(told)
        asked = urlsplit(way[1]).hostname if way else None
        told = told[way.end() :] if way else told  # what was before has names of buckets and objects
        status, code, text = _STATUS.search(told), _CODE.search(told), _TEXT.search(told)
        broken = _BREAK.search(details)
        name = (code[1] or code[2]) if code else ""
        number = status[1] if status else name if name.isdigit() else ""  # Azure's deletions have no other code
        if asked in _METADATA_HOSTS:
            name = _NO_CREDENTIALS
        return cls(
            told=told,
            status=number,
            reason=status[2].strip() if status else "",
            code="" if name == number else name,
            text=" ".join(text[1].split()) if text else "",
            broken=_BREAKS[broken[1]] if broken else "",
        )

    @property
    def is_final(self) -> bool:
        """Whether the store means it: asking for the same thing again gets the same answer."""
        if _PASSES.fullmatch(self.code):
            return False
        return self.status == "501" or (self.status.startswith("4") and self.status not in {"408", "409", "412", "429"})

    def known(self) -> _Known | None:
        """What it means, where that is known."""
        return _known(self.code, self.text if self.code else self.told)

    def in_short(self) -> str:
        """What happened, without anything that looks like a credential."""
        if self.status:
            why = ": ".join(part for part in (self.code, self.text) if part)
            return plain(f"the store answered {self.status} {self.reason}" + (f" ({why})" if why else ""))
        return self.broken or plain(self.told)


def _known(code: str, message: str) -> _Known | None:
    return next((it for it in _KNOWN if re.fullmatch(it.codes, code) or re.search(it.words, message)), None)


def known_error(what: str, code: str, message: str) -> UserError | None:
    """Ours for a store's answer with this code and message; None where the reason is not among those we know."""
    known = _known(code, message)
    return UserError(f"{what}: {known.means}", remedy=known.remedy) if known is not None else None


def plain(text: str) -> str:
    """A library's message on one line, without anything that looks like a credential."""
    return _SECRETS.sub(r"\1…", " ".join(text.split()))[:300]

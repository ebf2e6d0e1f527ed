"""What may happen between a client and an S3 server, as values that a `FaultProxy` acts out."""

from __future__ import annotations

from dataclasses import dataclass

# --- the line ---


@dataclass(frozen=True, slots=True)
class Latency:
    """Each request is taken up this much later."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """All bodies together, both ways, pass at this rate."""

    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Reset:
    """The connection is reset: before the server hears of the request, or in the middle of a body.

    The body is the request's where it has one, of which the server then sees nothing, and else the answer's.
    """

    is_midway: bool = False


@dataclass(frozen=True, slots=True)
class Silence:
    """The request is taken and never answered, as when packets are dropped."""


# --- the answer ---


@dataclass(frozen=True, slots=True)
class LostAnswer:
    """The server does what it was asked to and the client never hears of it: it waits, or its connection is reset."""

    is_reset: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The client gets this answer, and the server hears of the request only if `is_committed`."""

    status: int
    body: bytes = b""
    fields: tuple[tuple[str, str], ...] = ()
    is_committed: bool = False


@dataclass(frozen=True, slots=True)
class Truncated:
    """The answer says its true size, and ends after half of it."""


@dataclass(frozen=True, slots=True)
class Flipped:
    """One bit of the answer's body is wrong."""


@dataclass(frozen=True, slots=True)
class ErrorPage:
    """The answer keeps its status and fields, tags included, and its body is a page in HTML."""

    body: bytes = b"<html><head><title>Sign in</title></head><body>Accept the terms of use to go on.</body></html>"


Fault = Latency | Bandwidth | Reset | Silence | LostAnswer | Answer | Truncated | Flipped | ErrorPage
NEED_A_BODY = (Truncated, Flipped, ErrorPage)  # these act on answers to GET


# --- what S3 says ---


def s3_error(status: int, code: str, *fields: tuple[str, str], text: str = "", is_committed: bool = False) -> Answer:
    """An error in the form of S3's."""
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{text or code}</Message></Error>'
    )
    return Answer(status, body.encode(), (("Content-Type", "application/xml"), *fields), is_committed)


SLOW_DOWN = s3_error(503, "SlowDown", ("Retry-After", "1"), text="Please reduce your request rate.")
UNAVAILABLE = s3_error(503, "ServiceUnavailable")
INTERNAL_ERROR = s3_error(500, "InternalError", text="We encountered an internal error. Please try again.")
TOO_MANY_REQUESTS = s3_error(429, "TooManyRequests", ("Retry-After", "1"))
EXPIRED_TOKEN = s3_error(400, "ExpiredToken", text="The provided token has expired.")
CLOCK_SKEW = s3_error(
    403, "RequestTimeTooSkewed", text="The difference between the request time and ours is too large."
)
ARCHIVED = s3_error(403, "InvalidObjectState", text="The operation is not valid for the object's storage class")
OTHER_REGION = s3_error(301, "PermanentRedirect", ("x-amz-bucket-region", "eu-west-7"), text="Use another endpoint.")

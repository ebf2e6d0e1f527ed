"""`Location`: a place for copies, as one string names it: `s3://bucket/prefix?endpoint=https://…`."""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from steadyolo.errors import UserError

SCHEMES = {"s3": "a bucket of S3 or a service that speaks it", "gs": "Google", "az": "Azure", "file": "a folder"}
OPTIONS = {
    "endpoint": "address of a service that speaks S3, such as https://oss-cn-hangzhou.aliyuncs.com",
    "region": "region of the bucket",
    "sse": "encryption by the store: s3 | kms | kms:KEY-ID | c:FILE with a key of 32 bytes",
    "key": "file with a key of 32 bytes (raw, hex or base64): everything is encrypted before it leaves this machine",
    "key_command": "command that prints such a key",
    "plain_http": "true allows an endpoint without TLS that is not on this machine",
}
_ONLY_S3 = frozenset({"endpoint", "region", "sse", "plain_http"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """A scheme, a bucket (the container of Azure, empty for a folder), a path in it without slashes at its ends."""

    scheme: str
    bucket: str
    path: str  # of a folder: absolute, with its leading slash
    options: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """The text that `parse_location` reads."""
        where = f"{self.scheme}://{self.bucket}{'/' if self.bucket and self.path else ''}{quote(self.path)}"
        return where + (f"?{urlencode(self.options, safe='/:')}" if self.options else "")

    @property
    def parent(self) -> Location:
        """The place that contains this one."""
        return replace(self, path=self.path.rpartition("/")[0] or ("/" if self.scheme == "file" else ""))

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    def inside(self, name: str) -> Location:
        """The place called `name` in this one."""
        return replace(self, path=f"{self.path.rstrip('/')}/{name}" if self.path else name)


def is_location(text: str) -> bool:
    """Whether `text` is written as a URL, as against a path."""
    return "://" in text


def parse_location(text: str) -> Location:
    """Read a URL or, as a folder, a path.

    Raises: UserError for an unknown scheme or option, a missing bucket, credentials in the URL (never repeated in the
    message) and an endpoint without TLS that is not on this machine.
    """
    text = text.strip()
    if not text:
        raise UserError("no place is named", remedy="write s3://BUCKET/PREFIX, file:///mnt/disk or a folder")
    if not is_location(text):
        return Location(scheme="file", bucket="", path=str(Path(text).expanduser().absolute()))
    parts = urlsplit(text.replace("#", "%23"))  # a name may hold one; a place has no fragments
    scheme = {"gcs": "gs", "azure": "az", "abfs": "az", "abfss": "az"}.get(parts.scheme, parts.scheme)
    if scheme not in SCHEMES:
        near = difflib.get_close_matches(scheme, SCHEMES, n=1, cutoff=0.5)
        raise UserError(
            f"{parts.scheme}://… is not a place that copies can be kept in",
            remedy=f"use {'://, '.join(SCHEMES)}://" + (f"; did you mean {near[0]}://?" if near else ""),
        )
    if "@" in parts.netloc:
        raise UserError(
            "the store's URL carries credentials",
            remedy="leave them out: they come from the provider's own chain (role, profile or environment)",
        )
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    _check_options(scheme, options)
    if scheme == "file":
        if parts.netloc not in {"", "localhost"} or not parts.path:
            raise UserError(f"{text} names no folder of this machine", remedy="write file:///mnt/disk/runs")
        return Location(scheme=scheme, bucket="", path=unquote(parts.path).rstrip("/") or "/", options=options)
    if not parts.netloc:
        raise UserError(f"{text} names no bucket", remedy=f"write {scheme}://BUCKET/PREFIX")
    return Location(scheme=scheme, bucket=parts.netloc, path=unquote(parts.path).strip("/"), options=options)


def _check_options(scheme: str, options: Mapping[str, str]) -> None:
    for name, value in options.items():
        if name not in OPTIONS or (scheme != "s3" and name in _ONLY_S3):
            known = [known for known in OPTIONS if scheme == "s3" or known not in _ONLY_S3]
            near = difflib.get_close_matches(name, known, n=1)
            raise UserError(
                f"option {name!r} of a {scheme}:// URL is unknown",
                remedy=f"use {', '.join(known)}" + (f"; did you mean {near[0]}?" if near else ""),
            )
        if not value:
            raise UserError(f"option {name!r} of the store's URL is empty", remedy="give it a value or leave it out")
    if "key" in options and "key_command" in options:
        raise UserError("the store's URL has key and key_command", remedy="give one of them")
    sse = options.get("sse", "s3")
    if sse not in {"s3", "kms"} and not sse.startswith(("kms:", "c:")):
        raise UserError(f"sse={sse} is unknown", remedy="use s3, kms, kms:KEY-ID or c:FILE")
    endpoint = urlsplit(options.get("endpoint", "https://x"))
    if endpoint.scheme not in {"http", "https"} or not endpoint.hostname or "@" in endpoint.netloc:
        raise UserError("endpoint is not an address", remedy="write it as https://HOST[:PORT], without credentials")
    if endpoint.scheme == "http" and not _is_here(endpoint.hostname) and options.get("plain_http") != "true":
        raise UserError(
            f"the endpoint http://{endpoint.hostname} would be spoken to without TLS",
            remedy="use https://, or add plain_http=true on a network that you trust",
        )


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

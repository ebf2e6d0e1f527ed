"""`ObjectStore`: the few effects that a place for copies needs, whoever provides it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from steadyolo.errors import SteadyError, UserError

Data = bytes | memoryview
SEALED = b"STEADYO1"  # how every encrypted body begins
_NO_NAME = re.compile(r"\.{0,2}|.*[\x00-\x1f\x7f\\].*", re.DOTALL)  # what some store would change or refuse


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """An object as a listing names it. `tag` changes whenever the object does (an ETag); `num_bytes` are its body's."""

    key: str
    num_bytes: int
    tag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """An object's body, and the tag it had when it was read."""

    data: Data  # not to be kept for long: it may hold on to a buffer of the network's
    tag: str


class Taken(SteadyError):
    """A conditional put lost: somebody else wrote the object first. Read it again and decide anew."""


class Absent(SteadyError):
    """There is no object under this key."""


class ObjectStore(Protocol):
    """A flat set of objects under keys such as `train/steadyolo/writer.json`. Safe to call from several threads.

    Every method raises `Transient` when waiting may help, and `UserError` when something has to be changed first: a
    permission, a name, a key, the machine's clock. No message of an error contains a credential. No key is the folder
    of another, and a key that is ever put on a condition is always put so.

    A conditional put says for certain that an object is ours or somebody else's, whatever is lost on the way: what
    holds `data` already counts as written. So `data` has to name its writer, and it may be tried again after
    `Transient`.
    """

    url: str  # names the place in messages; holds no credential

    def put(self, key: str, data: Data) -> None: ...  # whole, durable, and confirmed to be `data`; readers see no mix
    def put_if(self, key: str, data: Data, *, tag: str | None) -> str: ...  # its new tag; `Taken` unless it has `tag`
    def get(self, key: str) -> Stored: ...  # `Absent` when it is not there
    def stream(self, key: str) -> Iterator[Data]: ...  # its body in pieces, each valid until the next; raises as `get`
    def list(self, folder: str) -> list[Listed]: ...  # under "a/b/" or "", sorted; includes every put that returned
    def holds(self, listed: Listed, data: Data) -> bool: ...  # its body is `data`, for certain
    def delete(self, key: str) -> None: ...  # absent is not an error


def checked_key(key: str) -> str:
    """`key`, which every store keeps under just this name. Raises: UserError."""
    if any(_NO_NAME.fullmatch(name) for name in key.split("/")):
        raise UserError(f"{key!r} is not an object's key", remedy="use names separated by single slashes")
    return key

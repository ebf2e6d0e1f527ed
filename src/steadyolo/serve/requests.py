"""One request on its way through the front."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from steadyolo.errors import DataLoss, SteadyError, UserError
from steadyolo.serve.service import BadImage, DeviceFault, Lost, NoSuchModel, Overloaded
from steadyolo.serve.wire import Message

_ERRORS = {kind.__name__: kind for kind in (UserError, BadImage, NoSuchModel, DataLoss, DeviceFault)}
_SOON_S = 0.5


@dataclass(eq=False, slots=True)
class Request:
    """What was accepted, until `answer` has its result."""

    number: int
    name: str
    version: str | None  # None for the one that answers now
    kind: str
    asked: dict[str, Any]
    body: bytes | memoryview
    deadline_s: float
    answer: asyncio.Future[Message]
    key: str = ""  # the engine that computes it, while one does
    num_losses: int = 0  # workers that ended with it
    is_by_fallback: bool = False
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)

    def message(self, key: str) -> Message:
        """As the worker takes it."""
        header = {"kind": self.kind, "number": self.number, "key": key, "deadline_s": self.deadline_s, **self.asked}
        return Message(header, self.body)

    def settle(self, message: Message) -> None:
        """The worker's word on it."""
        if self.answer.done():
            return
        if message.kind == "reply":
            self.answer.set_result(message)
        else:
            self.answer.set_exception(error_of(message))

    def refuse(self, error: SteadyError) -> None:
        """It is not computed, or was in vain."""
        if not self.answer.done():
            self.answer.set_exception(error)


def error_of(message: Message) -> SteadyError:
    """What a worker refused with, as the same kind of error."""
    kind, text, remedy = (str(message.header[name]) for name in ("type", "message", "remedy"))
    if kind == "Expired":
        return Overloaded(text, retry_after_s=_SOON_S)
    return _ERRORS.get(kind, SteadyError)(text, remedy=remedy)


def replaced(name: str, version: str | None) -> NoSuchModel:
    """That version is not here, or no more."""
    return NoSuchModel(f"{name} has no version {version!r} here", remedy="leave the version out, or use a loaded one")


def lost(why: str) -> Lost:
    """The worker had it, and is gone or late."""
    return Lost(f"the worker did not answer: {why}", retry_after_s=_SOON_S)

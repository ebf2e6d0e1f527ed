"""The errors of steadyolo, sorted by what the caller can do next."""

from __future__ import annotations


class SteadyError(Exception):
    """Something went wrong; `remedy` says what to do about it."""

    def __init__(self, message: str, *, remedy: str) -> None:
        super().__init__(f"{message}\n  remedy: {remedy}")
        self.message = message
        self.remedy = remedy


class UserError(SteadyError):
    """Change the input; retrying cannot help."""


class Transient(SteadyError):
    """Wait and retry; nothing was lost."""


class DataLoss(SteadyError):
    """Stop: something durable is not what we wrote."""


class Diverged(SteadyError):
    """The run's numbers are no longer finite and going back did not help."""


class DoesNotFit(SteadyError):
    """There is not enough memory, however little is asked for at once."""

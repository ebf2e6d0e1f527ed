"""Errors as HTTP tells them: a status, and a body that says what happened, what to do, and a word for programs."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from steadyolo.errors import SteadyError, UserError
from steadyolo.serve.service import BadImage, Lost, NoSuchModel, NotReady, Overloaded

logger = logging.getLogger(__name__)

CLIENT_LEFT = 499  # nobody reads it but the metrics


class Refused(UserError):
    """A request that this front does not take."""

    def __init__(
        self, status: int, code: str, message: str, *, remedy: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})


@dataclass(frozen=True, slots=True)
class Problem:
    """What is told of an error."""

    status: int
    code: str
    message: str
    remedy: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def response(self, path: str) -> Response:
        """Under /v2 the protocol wants the error as a text; elsewhere it is an object."""
        if path.startswith("/v2"):
            body: dict[str, Any] = {"error": self.message, "remedy": self.remedy, "code": self.code}
        else:
            body = {"error": {"message": self.message, "remedy": self.remedy, "code": self.code}}
        return JSONResponse(body, self.status, headers=self.headers)


def the_header(request: Request, name: str) -> str | None:
    """Raises: Refused where it is there twice: whoever passed the request on may have meant the other one."""
    values = request.headers.getlist(name)
    if len(values) > 1:
        raise Refused(400, "header_twice", f"the header {name} is there {len(values)} times", remedy="send it once")
    return values[0] if values else None


def problem_of(error: Exception) -> Problem:
    """Sorted by type. What nobody foresaw is a fault of ours: it is logged whole, and told without its details."""
    match error:
        case Refused():
            return Problem(error.status, error.code, error.message, error.remedy, error.headers)
        case Overloaded():
            return _shed(error)
        case NoSuchModel():
            return Problem(404, "no_such_model", error.message, error.remedy)
        case BadImage():
            return Problem(400, "bad_image", error.message, error.remedy)
        case UserError():
            return Problem(400, "bad_request", error.message, error.remedy)
        case ClientDisconnect():
            return Problem(CLIENT_LEFT, "client_left", "the client left before its request was read", "")
        case TimeoutError():
            return Problem(504, "late", "no answer came within the time limit", "send it again later")
    logger.error("a request failed", exc_info=error)
    message = error.message if isinstance(error, SteadyError) else "something failed that should not"
    remedy = error.remedy if isinstance(error, SteadyError) else "report it with the server's log"
    return Problem(500, "fault", message, remedy)


def _shed(error: Overloaded) -> Problem:
    code = {NotReady: "not_ready", Lost: "lost"}.get(type(error), "overloaded")
    headers = retry_after(error.retry_after_s)
    return Problem(429 if error.is_client else 503, code, error.message, error.remedy, headers)


def retry_after(seconds: float) -> dict[str, str]:
    """The header takes whole seconds, at least one."""
    return {"retry-after": str(max(1, math.ceil(seconds)))}

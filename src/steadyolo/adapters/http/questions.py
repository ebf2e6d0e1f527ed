"""Query parameters of a detection, read strictly: one that nobody knows, or twice, is refused with the right names."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from starlette.datastructures import QueryParams

from steadyolo.adapters.http.problems import Refused
from steadyolo.serve.service import DetectOptions

MAX_DET, MAX_CLASS, MAX_TEXT = 3_000, 65_535, 128  # the largest values that are taken


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a model about a picture."""

    options: DetectOptions
    version: str | None


def read_question(query: QueryParams) -> Question:
    """Raises: Refused for a parameter that is unknown, given twice or out of its range."""
    values: dict[str, Any] = {}
    for name, text in query.multi_items():
        if name not in _READERS:
            near = get_close_matches(name, _READERS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"use {', '.join(_READERS)}"
            raise Refused(400, "unknown_parameter", f"no parameter is named {name[:MAX_TEXT]!r}", remedy=hint)
        if name in values:
            raise Refused(400, "bad_parameter", f"{name} is given twice", remedy=f"give {name} once")
        values[name] = _READERS[name](name, text)
    version = values.pop("version", None)
    return Question(DetectOptions(**values), version)


def _bad(name: str, text: str, wanted: str) -> Refused:
    return Refused(400, "bad_parameter", f"{name} is {text[:MAX_TEXT]!r}", remedy=f"give {name} {wanted}")


def _share(name: str, text: str) -> float:
    try:
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise _bad(name, text, "as a number from 0 to 1")
    return value


def _whole(name: str, text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise _bad(name, text, f"as a whole number from {least} to {most}")
    return int(text)


def _classes(name: str, text: str) -> tuple[int, ...]:
    if not text or len(text) > MAX_CLASS:
        raise _bad(name, text, "as numbers, such as 0,2")
    return tuple(_whole(name, one, 0, MAX_CLASS) for one in text.split(","))


def _switch(name: str, text: str) -> bool:
    known = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in known:
        raise _bad(name, text, "as true or false")
    return known[text.lower()]


def _version(name: str, text: str) -> str:
    if not 0 < len(text) <= MAX_TEXT:
        raise _bad(name, text, "as /v1/models lists it")
    return text


_READERS: dict[str, Callable[[str, str], Any]] = {
    "conf": _share,
    "iou": _share,
    "max_det": lambda name, text: _whole(name, text, 1, MAX_DET),
    "classes": _classes,
    "agnostic_nms": _switch,
    "version": _version,
}

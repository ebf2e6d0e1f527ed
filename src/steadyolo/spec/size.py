"""Sizes as people write them and read them."""

from __future__ import annotations

import difflib
import re

from steadyolo.errors import UserError

_FACTORS = {
    "": 1,
    **{unit: 1000**power for power, unit in enumerate(("b", "kb", "mb", "gb", "tb"))},
    **{unit: 1024**power for power, unit in enumerate(("kib", "mib", "gib", "tib"), start=1)},
    **{unit: 1024**power for power, unit in enumerate(("k", "m", "g", "t"), start=1)},
}


def parse_bytes(text: str) -> int:
    """Bytes from `4GiB`, `20 MB` or a bare number. Raises: UserError for anything else or nothing positive."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]*?)\s*", str(text).lower())
    num_bytes = int(float(match[1]) * _FACTORS[match[2]]) if match and match[2] in _FACTORS else 0
    if num_bytes <= 0:
        near = _nearest_unit(match[2]) if match and float(match[1]) > 0 else ""
        remedy = f"write it as {match[1]}{near}" if match and near else "write it as 4GiB, 500MB or a number of bytes"
        raise UserError(f"{text!r} is not a size", remedy=remedy)
    return num_bytes


def _nearest_unit(word: str) -> str:
    """The unit that somebody who wrote `word` may have meant, as it is usually written; empty where none is near."""
    names = {unit.lower(): unit for power in "KMGT" for unit in (f"{power}iB", f"{power}B")}
    names |= {"kilobytes": "KB", "megabytes": "MB", "gigabytes": "GB", "terabytes": "TB", "gigs": "GB"}
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return names[near[0]] if near else ""


def size_text(num_bytes: float) -> str:
    """A size in the largest unit that leaves at least 1: "1.5 GiB"."""
    for unit in ("B", "KiB", "MiB"):
        if abs(num_bytes) < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} GiB"

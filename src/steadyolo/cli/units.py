"""Durations as people say them."""

from __future__ import annotations


def age_text(seconds: float) -> str:
    """A duration as a person says it: "4.2 s", "3 min 20 s", "5 h 12 min", "2 d 3 h"."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"

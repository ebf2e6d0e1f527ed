"""`steadyolo serve`."""

from __future__ import annotations


def main(arguments: list[str]) -> None:
    """Serve the models that `arguments` name."""
    raise NotImplementedError

"""`Fit`: how a step's images are put through the network, which changes its memory and not what is learned from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Images in one forward and backward pass, and how many of the network's layers, from its first on, are computed
    again in the backward pass instead of being kept.
    """

    num_images: int
    num_recomputed: int = 0

"""Puts every random generator that augmentation draws from where a key says."""

from __future__ import annotations

import random

import numpy as np


def seed_generators(key: int) -> None:
    """Seed Python's, NumPy's legacy and torch's global generators from a 64-bit key.

    Albumentations reseeds itself whenever torch's initial seed changes, so it follows.
    """
    import torch

    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)
    torch.manual_seed(key >> 1)  # torch takes the seed as a signed 64-bit number

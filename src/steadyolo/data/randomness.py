"""Puts every random generator that augmentation draws from where a key says."""

from __future__ import annotations

import random

import numpy as np


def seed_generators(key: int, *, everywhere: bool = False) -> None:
    """Seed Python's, NumPy's legacy and torch's global generators from a 64-bit key; `everywhere`: accelerators' too.

    Albumentations reseeds itself whenever torch's initial seed changes, so it follows.
    """
    import torch

    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)
    seed = key >> 1  # torch takes it as a signed 64-bit number
    # Samples are made on the host; `torch.manual_seed` would look for every kind of accelerator too, at 100 us a time.
    torch.manual_seed(seed) if everywhere else torch.default_generator.manual_seed(seed)

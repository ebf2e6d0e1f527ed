from __future__ import annotations

import random

import numpy as np
import torch

from steadyolo.data.randomness import seed_generators


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.random_sample()), float(torch.rand(()))


def test_a_key_decides_all_generators_whatever_came_before() -> None:
    seed_generators(2**64 - 1)
    first = draws()
    random.seed(3)
    np.random.seed(4)
    torch.manual_seed(5)
    draws()
    seed_generators(2**64 - 1)
    assert draws() == first
    seed_generators(2**63)
    assert all(one != other for one, other in zip(draws(), first, strict=True))


def test_neighbouring_keys_draw_unrelated_numbers() -> None:
    columns = []
    for key in range(2000):
        seed_generators(key * 0x9E3779B97F4A7C15 & (1 << 64) - 1)
        columns.append(draws())
    means = np.array(columns).mean(0)
    assert np.abs(means - 0.5).max() < 0.04

"""Served for long: memory and latency stay what they were."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from steadyolo.serve.served_model import ServedModel
from tests.integration.test_serve_http import encoded, noise
from tests.serving import serving

MINUTES = float(os.environ.get("STEADYOLO_SOAK_MINUTES", "60"))
NUM_PARTS = 6  # of the time: the first one is for settling
GROWTH_BYTES = 32 << 20
SLOWER = 1.5


@pytest.mark.campaign
def test_memory_and_latency_are_flat(served: Callable[..., ServedModel], tmp_path: Path) -> None:
    pictures = [
        encoded(noise(60 + 7 * index, 300 - 11 * index), form) for index, form in enumerate(("JPEG", "PNG", "WEBP"))
    ]
    sizes, medians, p99s = [], [], []
    with serving(tmp_path, f"small={served('detect').folder}") as server:
        for _ in range(NUM_PARTS):
            seconds, until_s = [], time.monotonic() + 60 * MINUTES / NUM_PARTS
            while time.monotonic() < until_s:
                begun_s = time.monotonic()
                assert server.detect(pictures[len(seconds) % len(pictures)]).status == 200
                seconds.append(time.monotonic() - begun_s)
                if len(seconds) % 500 == 0:
                    assert server.detect(b"no picture").status == 400
            medians.append(statistics.median(seconds))
            p99s.append(statistics.quantiles(seconds, n=100)[-1])
            sizes.append(server.resident_bytes())
        figures = server.ask("GET", "/metrics").body.decode()
    assert "steadyolo_restarts_total 0.0" in figures
    assert max(sizes[1:]) - sizes[0] < GROWTH_BYTES
    assert medians[-1] <= SLOWER * medians[1]
    assert p99s[-1] <= SLOWER * max(p99s[1:-1])

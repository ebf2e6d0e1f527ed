"""Data sets that are fetched from a real S3 server, over a network that does what networks do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from steadyolo.adapters.objects.opening import open_store
from steadyolo.data.fetch import fetch_dataset
from steadyolo.errors import Transient, UserError
from steadyolo.spec.location import parse_location
from steadyolo.testing.fault_proxy import FaultProxy
from steadyolo.testing.network_faults import (
    ARCHIVED,
    SLOW_DOWN,
    ErrorPage,
    Fault,
    Flipped,
    Reset,
    Truncated,
)
from tests.servers.seaweed import SeaweedServer
from tests.unit.data.stored import FILES, filled, held

BROKEN = "images/train/1.jpg"
OPTIONS: dict[str, Any] = {"open_store": open_store, "pauses_s": (0.0, 0.0)}


@pytest.fixture
def url(seaweed: SeaweedServer, aws: None, prefix: str, fault_proxy: FaultProxy) -> str:
    """A small data set behind the proxy, with an empty object for one of its folders."""
    filled(open_store(parse_location(seaweed.url(prefix))))
    for folder in ("images/", "labels/train/"):
        seaweed.client().put_object(Bucket="steady-tests", Key=f"{prefix}/{folder}", Body=b"")
    return seaweed.url(prefix, endpoint=fault_proxy.endpoint)


@pytest.mark.parametrize(
    "fault",
    [Flipped(), Truncated(), ErrorPage(), Reset(), Reset(is_midway=True), SLOW_DOWN],
    ids=["flipped", "truncated", "error page", "reset", "reset midway", "503"],
)
def test_what_a_network_does_to_a_file_is_mended(
    url: str, fault_proxy: FaultProxy, quick_path: Path, fault: Fault
) -> None:
    rule = fault_proxy.inject(fault, method="GET", key=BROKEN, times=2)
    with fetch_dataset(url, cache=quick_path, **OPTIONS) as dataset:
        assert held(dataset.entry.files) == FILES
    assert rule.num_hits == 2, "no fault happened, so this proves nothing"


def test_a_copy_serves_while_nothing_answers(url: str, fault_proxy: FaultProxy, quick_path: Path) -> None:
    fault_proxy.go_down()
    with pytest.raises(Transient, match="no complete copy"):
        fetch_dataset(url, cache=quick_path, **OPTIONS)
    fault_proxy.come_up()
    fetch_dataset(url, cache=quick_path, **OPTIONS).close()
    fault_proxy.go_down()
    with fetch_dataset(url, cache=quick_path, **OPTIONS) as dataset:
        assert held(dataset.entry.files) == FILES
        assert "using the copy here" in dataset.warnings[0]


def test_a_file_that_stays_broken_is_never_taken(url: str, fault_proxy: FaultProxy, quick_path: Path) -> None:
    fault_proxy.inject(Flipped(), method="GET", key=BROKEN)
    with pytest.raises(Transient, match=BROKEN):
        fetch_dataset(url, cache=quick_path, **OPTIONS)
    assert BROKEN not in {key.partition("/files/")[2] for key in held(quick_path)}
    fault_proxy.clear()
    with fetch_dataset(url, cache=quick_path, **OPTIONS) as dataset:
        assert held(dataset.entry.files) == FILES


def test_the_comparison_is_needed(
    url: str, fault_proxy: FaultProxy, quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: without it a flipped bit is taken."""
    monkeypatch.setattr("steadyolo.data.transfer.Transfer._is_body_of", lambda *_: True)
    fault_proxy.inject(Flipped(), method="GET", key=BROKEN)
    with fetch_dataset(url, cache=quick_path, **OPTIONS) as dataset:
        assert held(dataset.entry.files) != FILES


def test_what_has_to_be_thawed_first_is_told(url: str, fault_proxy: FaultProxy, quick_path: Path) -> None:
    fault_proxy.inject(ARCHIVED, method="GET", key=BROKEN)
    with pytest.raises(UserError, match="archive tier") as caught:
        fetch_dataset(url, cache=quick_path, **OPTIONS)
    assert "thaw" in caught.value.remedy

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from steadyolo.errors import DataLoss, UserError
from steadyolo.vault.digested import to_text
from steadyolo.vault.manifest import FileEntry, Manifest

MANIFEST = Manifest(
    files=(FileEntry(name="model.safetensors", num_bytes=12, sha256="ab" * 32),),
    parent="step-00000001.00000004",
    writer_id="w1",
    step=2,
    steadyolo_version="0.1.0",
)


def text_of(change: dict[str, Any], without: str = "") -> bytes:
    """A manifest with other content and a right digest, as another version would write it."""
    raw = {**json.loads(MANIFEST.to_json()), **change}
    body = {key: value for key, value in raw.items() if key not in {"digest", without}}
    return to_text(body)


@pytest.mark.parametrize("manifest", [MANIFEST, replace(MANIFEST, parent=None, files=())])
def test_round_trip(manifest: Manifest) -> None:
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_size() -> None:
    assert MANIFEST.num_bytes == 12


def test_every_flipped_bit_is_found() -> None:
    good = MANIFEST.to_json()
    for offset in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[offset] ^= 1 << bit
            with pytest.raises(DataLoss, match=r"manifest\.json is damaged"):
                Manifest.from_json(bytes(bad))


def test_every_cut_is_found() -> None:
    good = MANIFEST.to_json()
    for size in range(len(good)):
        with pytest.raises(DataLoss, match=r"manifest\.json is damaged"):
            Manifest.from_json(good[:size])


@pytest.mark.parametrize(
    ("change", "without", "message"),
    [
        ({"version": 2, "steadyolo_version": "9.9", "news": 1}, "", r"version 2, written by steadyolo 9\.9"),
        ({"extra": 1}, "", r"unknown keys \['extra'\]"),
        ({}, "parent", r"missing keys \['parent'\]"),
        ({}, "version", "manifest of version None"),
        ({"files": [{"name": "a", "num_bytes": 1}]}, "", r"missing keys \['sha256'\]"),
    ],
)
def test_other_formats_are_refused(change: dict[str, Any], without: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Manifest.from_json(text_of(change, without))

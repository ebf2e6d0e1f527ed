from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from steadyolo.data.index import Copy, IndexFile
from steadyolo.vault.disk import LOCAL_DISK

COPIES = [Copy(key=f"{name}.jpg", tag=f'"{name}"', num_bytes=7, sha256=name * 64, mtime_ns=9) for name in "abc"]


@pytest.fixture
def file(tmp_path: Path) -> IndexFile:
    return IndexFile(tmp_path, disk=LOCAL_DISK)


def keys(file: IndexFile) -> str:
    return "".join(sorted(key[0] for key in file.read().copies))


def test_it_comes_back_in_both_forms(file: IndexFile) -> None:
    assert (file.read().complete, keys(file)) == (False, "")
    file.open(COPIES[:1])
    file.add(COPIES[1])
    file.add(replace(COPIES[0], tag="new"))
    read = file.read()
    assert not read.complete
    assert read.copies == {"a.jpg": replace(COPIES[0], tag="new"), "b.jpg": COPIES[1]}
    file.close(COPIES)
    assert file.read().complete
    assert list(file.read().copies.values()) == COPIES
    file.open(file.read().copies.values())
    assert (file.read().complete, keys(file)) == (False, "abc")


def test_a_line_torn_anywhere_costs_its_copy_only(file: IndexFile, tmp_path: Path) -> None:
    file.open(COPIES)
    path = tmp_path / "arrivals.jsonl"
    text = path.read_bytes()
    lines = text.splitlines(keepends=True)
    for at in range(0, len(text), 3):
        path.write_bytes(text[:at])
        whole = sum(at >= len(b"".join(lines[: n + 1])) - 1 for n in range(3))  # the line's end itself may be torn off
        assert keys(file) == "abc"[:whole]


@pytest.mark.parametrize("name", ["index.json", "arrivals.jsonl"])
def test_a_flipped_bit_is_never_believed(file: IndexFile, tmp_path: Path, name: str) -> None:
    file.open(COPIES)
    if name == "index.json":
        file.close(COPIES)
    path = tmp_path / name
    text = path.read_bytes()
    for at in range(0, len(text), 3):
        path.write_bytes(text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :])
        read = file.read()
        assert all(copy in COPIES for copy in read.copies.values())
        assert not read.complete or list(read.copies.values()) == COPIES
        assert len(read.copies) < 3 or name == "index.json", at

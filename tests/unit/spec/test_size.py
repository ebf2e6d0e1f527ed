from __future__ import annotations

import pytest

from steadyolo.errors import UserError
from steadyolo.spec.size import parse_bytes, size_text


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("50GiB", 50 * 1024**3),
        ("1.5 TB", 1_500_000_000_000),
        (" 4096b ", 4096),
        (".5MiB", 524288),
        ("800mb", 800 * 10**6),
        ("2G", 2 * 1024**3),
        ("50", 50),
    ],
)
def test_sizes(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "-1GiB", "0GiB", "GiB", "1e3GiB", "50 parsecs", "0.1B"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UserError, match="is not a size"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("num_bytes", "told"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**30, "3.0 GiB"), (2**42, "4096.0 GiB")],
)
def test_told_sizes(num_bytes: int, told: str) -> None:
    assert size_text(num_bytes) == told

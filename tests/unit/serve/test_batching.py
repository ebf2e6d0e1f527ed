"""Which images leave together, and when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from steadyolo.serve.batching import Batcher


def batcher(*items: str, hold_s: float = 0.0, buckets: tuple[int, ...] = (1, 2, 4)) -> Batcher[str]:
    """Items are named for their kind: a1, a2, b1; each came a second after the one before."""
    made: Batcher[str] = Batcher(hold_s=hold_s, buckets={"a": buckets, "b": buckets})
    for number, item in enumerate(items):
        made.put(item, item[0], now_s=float(number))
    return made


def test_nothing_leaves_where_nothing_is() -> None:
    assert batcher().take(now_s=0, num_coming=0) == []
    assert batcher().asks_again_in_s(now_s=0) is None


def test_one_leaves_at_once_where_none_comes() -> None:
    assert batcher("a1", hold_s=9).take(now_s=0, num_coming=0) == ["a1"]


def test_one_waits_for_what_comes_until_its_bound() -> None:
    waiting = batcher("a1", hold_s=0.5)
    assert waiting.take(now_s=0.4, num_coming=1) == []
    assert waiting.asks_again_in_s(now_s=0.4) == 0.5 - 0.4
    assert waiting.take(now_s=0.5, num_coming=1) == ["a1"]


def test_a_full_batch_does_not_wait() -> None:
    assert batcher("a1", "a2", "a3", "a4", "a5", hold_s=99).take(now_s=0, num_coming=9) == ["a1", "a2", "a3", "a4"]


def test_only_sizes_that_are_warm_are_formed() -> None:
    waiting = batcher("a1", "a2", "a3")
    assert waiting.take(now_s=9, num_coming=0) == ["a1", "a2"]
    assert waiting.take(now_s=9, num_coming=0) == ["a3"]
    assert batcher("a1", "a2", buckets=(1,)).take(now_s=9, num_coming=0) == ["a1"]
    other: Batcher[str] = Batcher()
    for item in ("c1", "c2"):
        other.put(item, "c", now_s=0)
    assert other.take(now_s=9, num_coming=0) == ["c1"]


def test_kinds_are_not_mixed_and_the_oldest_goes_first() -> None:
    waiting = batcher("a1", "b1", "a2", "b2")
    assert waiting.take(now_s=9, num_coming=0) == ["a1", "a2"]
    assert waiting.take(now_s=9, num_coming=0) == ["b1", "b2"]


def test_the_background_waits_and_then_does_not() -> None:
    waiting = batcher("a1", "a2", buckets=(1,))
    waiting.put_behind("check", now_s=0)
    assert waiting.take(now_s=0.5, num_coming=0) == ["a1"]
    assert waiting.take(now_s=1.0, num_coming=0) == ["check"]
    assert waiting.take(now_s=1.0, num_coming=0) == ["a2"]
    waiting.put_behind("check", now_s=5)
    assert waiting.take(now_s=5, num_coming=1) == []  # a request is being decoded
    assert waiting.asks_again_in_s(now_s=5) == 1.0
    assert waiting.take(now_s=5, num_coming=0) == ["check"]


@given(
    items=st.lists(st.sampled_from("ab"), max_size=30),
    sizes=st.sets(st.integers(2, 9), max_size=3),
    hold_s=st.floats(0, 2),
)
def test_each_leaves_once_in_the_order_of_its_kind(items: list[str], sizes: set[int], hold_s: float) -> None:
    named = [f"{kind}{number}" for number, kind in enumerate(items)]
    waiting = batcher(*named, hold_s=hold_s, buckets=(1, *sorted(sizes)))
    left: list[str] = []
    while batch := waiting.take(now_s=1e9, num_coming=1):
        assert len(batch) in {1, *sizes}
        assert len({item[0] for item in batch}) == 1
        left += batch
    assert sorted(left) == sorted(named)
    for kind in "ab":
        assert [item for item in left if item[0] == kind] == [item for item in named if item[0] == kind]

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadyolo.data.order import SampleOrder, key, share_of
from steadyolo.state.run_state import Cursor

SIZES = st.tuples(st.integers(0, 2**40), st.integers(1, 60), st.integers(1, 17), st.booleans())


def order_of(seed: int, num_samples: int, batch_size: int, shuffle: bool) -> SampleOrder:
    return SampleOrder(
        seed=seed,
        num_samples=num_samples,
        batch_size=batch_size,
        num_batches=-(-num_samples // batch_size),
        shuffle=shuffle,
    )


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((), 0x9E3779B97F4A7C15),
        ((0,), 0x6E789E6AA1B965F4),
        ((1,), 0xE99FF867DBF682C9),
        ((0, 0), 0x46B73E79F0C37C00),
        ((0, 1), 0x5D60B960E0946BA0),
        ((1, 0), 0x7F46A57C92DBEE5F),
        ((7, 3, 250, 2), 0xFFE597E0E97B8DC7),
        ((-1,), 0xB4D055FCF2CBBD7B),
    ],
)
def test_keys_never_change(parts: tuple[int, ...], expected: int) -> None:
    """A run resumed by a later release goes on with the draws that it began with."""
    assert key(*parts) == expected


GOLDEN_ORDER = [3, 0, 6, 7, 4, 1, 5, 2, 6, 5, 7, 2, 3, 4, 1, 0]


def test_orders_never_change() -> None:
    order = order_of(0, 8, 4, True)
    assert [order.index(position) for position in range(16)] == GOLDEN_ORDER
    assert order.sample_key(3) == key(0, 0, GOLDEN_ORDER[3], 2)
    assert order.batch_key(Cursor(epoch=1, batch=2)) == key(0, 1, 2, 3)


@given(st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 300), st.integers(0, 10**6)), unique=True, max_size=50))
def test_different_samples_have_different_keys(parts: list[tuple[int, int, int]]) -> None:
    keys = [key(*part) for part in parts]
    assert len(set(keys)) == len(keys)
    assert all(0 <= one < 2**64 for one in keys)


def test_keys_of_neighbours_are_unrelated() -> None:
    """Bits of the keys of neighbouring samples are even and independent."""
    keys = np.array([key(0, 0, index, 2) for index in range(4096)], np.uint64)
    bits = (keys[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(bits.mean(0) - 0.5).max() < 0.05
    assert np.abs((bits[1:] == bits[:-1]).mean(0) - 0.5).max() < 0.05


@given(SIZES, st.integers(0, 5))
def test_every_index_comes_once_in_each_epoch(sizes: tuple[int, int, int, bool], epoch: int) -> None:
    order = order_of(*sizes)
    batches = [order.positions(Cursor(epoch=epoch, batch=batch)) for batch in range(order.num_batches)]
    positions = [position for batch in batches for position in batch]
    assert positions == list(range(epoch * order.num_samples, (epoch + 1) * order.num_samples))
    assert sorted(order.index(position) for position in positions) == list(range(order.num_samples))
    assert all(len(batch) == order.batch_size for batch in batches[:-1])
    assert all(order.epoch_of(position) == epoch for position in positions)


@given(SIZES, st.integers(-150, 150), st.integers(0, 80))
def test_indices_of_a_range_are_those_of_its_positions(
    sizes: tuple[int, int, int, bool], start: int, length: int
) -> None:
    order = order_of(*sizes)
    positions = range(start, start + max(1, length))
    assert order.indices(positions).tolist() == [order.index(position) for position in positions]


@given(SIZES, st.integers(0, 200))
def test_partners_come_before_the_batch_and_are_never_none(sizes: tuple[int, int, int, bool], position: int) -> None:
    order = order_of(*sizes)
    partners = order.partner_positions(position)
    assert len(partners) >= order.batch_size
    assert partners.stop <= position - 2 * order.batch_size
    assert position - partners.start <= order.lookback
    # They are in the window however far its own batch has come: two batches of room, one of them being made.
    batch_start = position - position % order.num_samples % order.batch_size
    assert partners.stop <= batch_start or partners.stop <= position - order.batch_size


def test_a_seed_or_an_epoch_makes_another_order() -> None:
    orders = {
        tuple(order_of(seed, 50, 4, True).indices(range(epoch * 50, epoch * 50 + 50)).tolist())
        for seed in range(4)
        for epoch in range(-1, 4)
    }
    assert len(orders) == 20


def test_an_order_knows_nothing_of_what_was_asked_before() -> None:
    one, other = order_of(5, 33, 4, True), order_of(5, 33, 4, True)
    forwards = [one.index(position) for position in range(-40, 200)]
    backwards = [other.index(position) for position in reversed(range(-40, 200))]
    assert forwards == backwards[::-1]


def test_an_order_that_is_not_shuffled_is_the_data_sets_own() -> None:
    order = order_of(0, 5, 2, False)
    assert [order.index(position) for position in range(-5, 10)] == [0, 1, 2, 3, 4] * 3


def test_orders_are_even() -> None:
    """Each index is as likely at each place: 2000 epochs of 10 samples."""
    order = order_of(1, 10, 2, True)
    seen = np.stack([order.indices(range(epoch * 10, epoch * 10 + 10)) for epoch in range(2000)])
    counts = np.stack([np.bincount(column, minlength=10) for column in seen.T])
    assert np.abs(counts - 200).max() < 5 * np.sqrt(200)


@given(st.integers(0, 40), st.integers(0, 9), st.integers(1, 9))
def test_shares_are_a_batch_taken_apart(start: int, num_images: int, count: int) -> None:
    """Each of its samples falls to one process, in order, and no process has more than one sample more than another."""
    batch = range(start, start + num_images)
    shares = [share_of(batch, rank, count) for rank in range(count)]
    assert [position for share in shares for position in share] == list(batch)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(st.integers(0, 2**40), st.integers(0, 3), st.integers(0, 9))
def test_shares_of_a_batch_draw_differently(seed: int, epoch: int, batch: int) -> None:
    order, cursor = order_of(seed, 40, 4, True), Cursor(epoch=epoch, batch=batch)
    keys = [order.share_key(cursor, rank) for rank in range(8)]
    assert keys[0] == order.batch_key(cursor)
    assert len(set(keys)) == 8

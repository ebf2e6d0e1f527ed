from __future__ import annotations

import pytest

from steadyolo.data.boxes import BoxCounts, Mixing


def test_the_histogram() -> None:
    counts = BoxCounts.of([3, 0, 7, 3])
    assert counts.images_by_boxes == {0: 1, 3: 2, 7: 1}
    assert (counts.num_images, counts.most_in_image) == (4, 7)


@pytest.mark.parametrize(
    ("mixing", "most"),
    [
        (Mixing(), 28),  # the same image may be in all four places
        (Mixing(mosaic=0.0), 7),
        (Mixing(mixup=0.1), 56),
        (Mixing(mosaic=0.0, mixup=0.1, cutmix=0.2), 21),
        (Mixing(mosaic=0.0, copy_paste=0.5), 10),
    ],
)
def test_the_most_boxes_in_a_training_picture(mixing: Mixing, most: int) -> None:
    assert BoxCounts.of([3, 0, 7, 3]).most_in_picture(mixing) == most


def test_nothing_has_no_boxes() -> None:
    assert BoxCounts.of([]).most_in_picture(Mixing()) == 0

"""How many boxes a picture can hold: what the target assigner's memory grows with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_MOSAIC_IMAGES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixing:
    """How training pictures are made of several images: Ultralytics' arguments of these names."""

    mosaic: float = 1.0
    mixup: float = 0.0
    cutmix: float = 0.0
    copy_paste: float = 0.0  # the share of a picture's objects that are pasted into it once more

    @property
    def num_images(self) -> int:
        """Most images that one picture is made of. What is mixed in is a mosaic too."""
        own = _MOSAIC_IMAGES if self.mosaic > 0 else 1
        return own * (1 + (self.mixup > 0) + (self.cutmix > 0))


@dataclass(frozen=True, slots=True)
class BoxCounts:
    """How many images have how many boxes."""

    images_by_boxes: Mapping[int, int]

    @classmethod
    def of(cls, counts: Iterable[int]) -> BoxCounts:
        """The histogram of boxes per image."""
        return cls(dict(sorted(Counter(counts).items())))

    @property
    def num_images(self) -> int:
        return sum(self.images_by_boxes.values())

    @property
    def most_in_image(self) -> int:
        return max(self.images_by_boxes, default=0)

    def mean_in_picture(self, mixing: Mixing) -> float:
        """The boxes that a training picture has on average, at most: what a mosaic cuts off is not taken away."""
        boxes = sum(boxes * images for boxes, images in self.images_by_boxes.items())
        return boxes / max(1, self.num_images) * mixing.num_images * (1.0 + mixing.copy_paste)

    def most_in_picture(self, mixing: Mixing) -> int:
        """The most boxes that a training picture can have.

        Partners are drawn with replacement, so the most crowded image may be in one mosaic as often as there are
        places: the bound is its boxes times these, not the sum over the most crowded images.
        """
        pasted = 1.0 + mixing.copy_paste
        return int(self.most_in_image * mixing.num_images * pasted)

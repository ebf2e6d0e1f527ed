"""`DecodedWindow`: recently decoded images, so that a mosaic's partners need no second decoding.

Only a memory of work already done: whether an image is found here or decoded again changes nothing in a sample.
"""

from __future__ import annotations

import multiprocessing
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NUM_LOCKS = 16  # two workers rarely want the same stripe at once, and a stripe is held for one copy


class DecodedWindow:
    """A ring of decoded images, one slot for each position of the sample stream, tagged with the dataset index.

    With `shared` the ring lies in shared memory and serves all loader workers forked afterwards; an image that is
    larger than a slot is then not kept. Without it, slots simply hold the arrays.
    """

    def __init__(self, num_slots: int, *, max_image_bytes: int = 0, shared: bool = False) -> None:
        self.num_slots = num_slots
        self._shared = shared
        self._slots: list[tuple[int, Any] | None] = [None] * (0 if shared else num_slots)
        if shared:
            import torch  # its shared memory needs no name and goes when the last process does

            self._pixels = torch.empty((num_slots, max_image_bytes), dtype=torch.uint8).share_memory_().numpy()
            self._tags = torch.full((num_slots,), -1, dtype=torch.int64).share_memory_().numpy()
            self._shapes = torch.zeros((num_slots, 5), dtype=torch.int32).share_memory_().numpy()
            self._locks = [multiprocessing.get_context("fork").Lock() for _ in range(_NUM_LOCKS)]

    def get(self, position: int, index: int) -> tuple[NDArray[np.uint8], tuple[int, int]] | None:
        """The image of dataset index `index` and its original (height, width), if its slot still holds it."""
        slot = position % self.num_slots
        if not self._shared:
            held = self._slots[slot]
            return held[1] if held is not None and held[0] == index else None
        with self._locks[slot % _NUM_LOCKS]:
            if self._tags[slot] != index:
                return None
            height, width, channels, height0, width0 = (int(x) for x in self._shapes[slot])
            count = height * width * channels
            image = self._pixels[slot, :count].reshape(height, width, channels).copy()
        return image, (height0, width0)

    def put(self, position: int, index: int, image: NDArray[np.uint8], original_hw: tuple[int, int]) -> None:
        """Keep an image, shape (height, width, channels), until the ring comes round to its slot again."""
        slot = position % self.num_slots
        if not self._shared:
            self._slots[slot] = (index, (image, original_hw))
            return
        if image.nbytes > self._pixels.shape[1] or image.dtype != np.uint8:
            return
        with self._locks[slot % _NUM_LOCKS]:
            self._tags[slot] = index
            self._shapes[slot] = (*image.shape, *original_hw)
            self._pixels[slot, : image.nbytes] = image.reshape(-1)

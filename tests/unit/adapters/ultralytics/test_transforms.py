"""Transforms of ours deliver what upstream's deliver, byte for byte."""

from __future__ import annotations

import random
from copy import deepcopy
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ultralytics.data.augment import Compose as UpstreamCompose
from ultralytics.data.augment import Format, MixUp, Mosaic, RandomPerspective
from ultralytics.utils.instance import Instances

from steadyolo.adapters.ultralytics.dataset import _Label
from steadyolo.adapters.ultralytics.transforms import QuickFormat, QuickPerspective, each_transform, quicken

FLIPS = {"none": (1, 1), "mirrored": (1, -1), "upside down": (-1, 1), "both": (-1, -1)}


def noise(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def objects(count: int, *, seed: int = 0) -> dict[str, Any]:
    """`count` objects with boxes, polygons of 4 points, and keypoints, in shares of the image."""
    draws = np.random.default_rng(seed)
    corners = draws.uniform(0.1, 0.9, (count, 4, 2)).astype(np.float32)
    low, high = (corners.min(1), corners.max(1)) if count else (np.zeros((0, 2), np.float32),) * 2
    points = np.concatenate([draws.uniform(0, 1, (count, 5, 2)), draws.integers(0, 3, (count, 5, 1))], -1)
    boxes = np.concatenate([(low + high) / 2, high - low], -1).astype(np.float32)
    return {
        "cls": np.arange(count, dtype=np.float32)[:, None],
        "instances": Instances(boxes, corners, points.astype(np.float32), bbox_format="xywh", normalized=True),
    }


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    assert list(one) == list(other)
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert (value.dtype, value.stride()) == (other[name].dtype, other[name].stride()), name
            assert torch.equal(value, other[name]), name
        elif isinstance(value, np.ndarray):
            assert value.dtype == other[name].dtype
            assert np.array_equal(value, other[name]), name
        elif isinstance(value, Instances):
            assert repr(value) == repr(other[name])
        else:
            assert value == other[name], name
    return True


settings = {
    "size": st.sampled_from([32, 96, 160]),
    "shape_px": st.tuples(st.integers(1, 330), st.integers(1, 330)) | st.just(None),  # None: a mosaic's
    "scale": st.sampled_from([0.0, 0.5, 0.9, 1.0, (0.01, 0.02), (0.0, 0.0), (3.0, 9.0)]),
    "translate": st.sampled_from([0.0, 0.1, 0.5, 2.0]),
    "degrees": st.sampled_from([0.0, 10.0, 180.0]),
    "shear": st.sampled_from([0.0, 20.0]),
    "perspective": st.sampled_from([0.0, 0.0005]),
    "channels": st.sampled_from([3, 3, 3, 1, 4]),
    "seed": st.integers(0, 1 << 30),
}


@given(**settings)  # type: ignore[arg-type]  # by name
def test_a_quick_warp_is_upstreams(
    size: int, shape_px: tuple[int, int] | None, channels: int, seed: int, **change: Any
) -> None:
    image = noise(*(shape_px or (2 * size, 2 * size)), channels, seed=seed)
    warped = []
    for kind in (RandomPerspective, QuickPerspective):
        random.seed(seed)
        noise(*image.shape[:2], 4)  # left in freed memory: a pixel that is read without being set would show it
        transform = kind(size=(size, size), **change)
        warped.append(transform({"img": image.copy(), **objects(3, seed=seed)}))
        warped[-1]["drawn"] = random.random()
    assert same(*warped)


def test_only_what_a_warp_reads_is_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the conversion would cost as much as it saves; and what is left out must not be read."""
    real, areas = cv2.cvtColor, []

    def counting(image: Any, code: int, **more: Any) -> Any:
        areas.append(image.shape[0] * image.shape[1])
        return real(image, code, **more)

    monkeypatch.setattr(cv2, "cvtColor", counting)
    transform = QuickPerspective(size=(160, 160), scale=0.0, translate=0.0)
    transform({"img": noise(320, 320, 3), **objects(1)})
    assert areas == [pytest.approx(160 * 160, rel=0.1), 160 * 160]


@pytest.mark.parametrize("count", [0, 1, 7])
@pytest.mark.parametrize("flip", FLIPS)
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    "returns",
    [{}, {"return_mask": True}, {"return_keypoint": True}, {"return_obb": True}, {"normalize": False}],
    ids=str,
)
def test_a_quick_format_is_upstreams(count: int, flip: str, channels: int, returns: dict[str, bool]) -> None:
    down, across = FLIPS[flip]
    for seed in range(4):
        made = []
        for kind in (Format, QuickFormat):
            random.seed(seed)
            image = noise(72, 96, channels, seed=seed)[::down, ::across]
            made.append(kind(bgr=0.5, **returns)({"img": image, **objects(count, seed=seed)}))
            made[-1]["drawn"] = random.random()
        assert same(*made)


def test_nested_transforms_are_quickened_once() -> None:
    class Own(RandomPerspective):  # type: ignore[misc]
        """A subclass of the user's keeps its ways."""

    class Images:
        cache = None

    warp, own = RandomPerspective(), Own()
    inner = UpstreamCompose([Mosaic(Images()), warp])
    transforms = UpstreamCompose([inner, MixUp(Images(), pre_transform=UpstreamCompose([own, RandomPerspective()]))])
    quicken(transforms)
    warps = [transform for transform in each_transform(transforms) if isinstance(transform, RandomPerspective)]
    assert [type(transform) for transform in warps] == [QuickPerspective, Own, QuickPerspective]
    assert warps[0] is warp


def test_a_copied_label_shares_nothing_that_is_changed() -> None:
    label = {
        "im_file": "a.jpg",
        "shape": (4, 5),
        "cls": np.zeros((2, 1), np.float32),
        "bboxes": noise(2, 4).astype(np.float32),
        "segments": [noise(3, 2).astype(np.float32), noise(5, 2).astype(np.float32)],
        "keypoints": None,
        "normalized": True,
        "bbox_format": "xywh",
    }
    copied, upstreams = deepcopy(_Label(label)), deepcopy(label)
    assert type(copied) is dict
    assert repr(copied) == repr(upstreams)
    assert not np.shares_memory(copied["bboxes"], label["bboxes"])
    assert not np.shares_memory(copied["cls"], label["cls"])
    assert copied["segments"] is not label["segments"]

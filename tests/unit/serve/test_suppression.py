"""Suppression keeps the boxes that Ultralytics' keeps, however many there are, and its work is bounded."""

from __future__ import annotations

import time

import numpy as np
import pytest

from steadyolo.serve.suppression import suppress, suppress_rotated


def boxes(num_boxes: int, seed: int, *, side: float = 640.0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    low = random.random((num_boxes, 2)) * side
    high = low + random.random((num_boxes, 2)) * 90
    return np.concatenate((low, high), 1).astype(np.float32), random.permutation(num_boxes).astype(np.float32) / 1e5


@pytest.mark.parametrize("iou", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("num_boxes", [0, 1, 2, 255, 256, 257, 3000])
def test_upright_boxes(num_boxes: int, iou: float) -> None:
    import torch
    from torchvision.ops import nms

    xyxy, score = boxes(num_boxes, seed=num_boxes)
    if num_boxes > 2:
        xyxy[1] = xyxy[0]  # the same place twice
        xyxy[2, 2:] = xyxy[2, :2]  # no area
    expected = nms(torch.from_numpy(xyxy), torch.from_numpy(score), iou).numpy()
    assert suppress(xyxy, score, iou=iou, max_det=10**6).tolist() == expected.tolist()
    assert suppress(xyxy, score, iou=iou, max_det=7).tolist() == expected[:7].tolist()


@pytest.mark.parametrize("iou", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("num_boxes", [0, 1, 300, 1500])
def test_rotated_boxes(num_boxes: int, iou: float) -> None:
    import torch
    from ultralytics.utils.metrics import batch_probiou
    from ultralytics.utils.nms import TorchNMS

    xyxy, score = boxes(num_boxes, seed=num_boxes)
    angle = np.random.default_rng(1).random((num_boxes, 1)) * 3
    xywhr = np.concatenate(((xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2] + 1, angle), 1)
    boxes_64, scores = torch.from_numpy(xywhr), torch.from_numpy(score)
    expected = TorchNMS.fast_nms(boxes_64, scores, iou, iou_func=batch_probiou).numpy()
    found = suppress_rotated(xywhr.astype(np.float64), score, iou=iou, max_det=10**6)
    assert found.tolist() == expected.tolist()
    assert suppress_rotated(xywhr.astype(np.float64), score, iou=iou, max_det=5).tolist() == expected[:5].tolist()


@pytest.mark.parametrize("side", [100.0, 640.0, 20_000.0], ids=["all in one place", "crowded", "apart"])
def test_thirty_thousand_boxes_take_no_longer_than_a_request_may(side: float) -> None:
    xyxy, score = boxes(30_000, seed=1, side=side)
    begin_s = time.process_time()
    assert 0 < len(suppress(xyxy, score, iou=0.7, max_det=300)) <= 300
    assert time.process_time() - begin_s < 2.0

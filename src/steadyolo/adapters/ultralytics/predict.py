"""Draws what a model finds on an image, with Ultralytics' own predictor."""

from __future__ import annotations

from pathlib import Path

from ultralytics import YOLO

from steadyolo.adapters.ultralytics.weights import check_weights


def draw_detections(weights: Path, image: Path, picture: Path, *, side_px: int, confidence: float = 0.25) -> int:
    """Write `image` with the boxes found on it to `picture`; returns how many there are."""
    check_weights(weights)
    result = YOLO(str(weights)).predict(str(image), imgsz=side_px, conf=confidence, verbose=False, device="cpu")[0]
    picture.parent.mkdir(parents=True, exist_ok=True)
    result.save(filename=str(picture))
    return len(result.boxes)

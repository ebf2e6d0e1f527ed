"""The shapes in which a model's pictures go through its graph."""

from __future__ import annotations

from steadyolo.serve.letterbox import Shape, common_shapes
from steadyolo.serve.served_model import ServedModel


def shapes_of(model: ServedModel) -> tuple[Shape, ...]:
    """One, or the full one and the common ratios' where the model takes any. The full one is the first."""
    if not model.is_dynamic or model.task == "classify":
        return (model.shape_px,)
    return common_shapes(model.shape_px, model.stride_px)

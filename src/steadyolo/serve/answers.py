"""What the columns of a graph's outputs mean, part by part: boxes, scores and what else a task finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from steadyolo.serve.served_model import ServedModel, Task
from steadyolo.serve.session import Output

Parts = dict[str, Output]  # each (batch, rows, columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the outputs of a model are laid out."""

    task: Task
    num_classes: int
    is_end_to_end: bool
    keypoint_shape: tuple[int, int] | None

    @classmethod
    def of(cls, model: ServedModel) -> Self:
        return cls(
            task=model.task,
            num_classes=len(model.classes),
            is_end_to_end=model.is_end_to_end,
            keypoint_shape=model.keypoint_shape,
        )

    def parts(self, outputs: Sequence[Output]) -> Parts:
        """The outputs by what they mean; a row is a place in the picture, or a found object of an end-to-end model.

        Shapes: one (batch, classes) of a classifier; else (batch, columns, rows), or (batch, rows, columns) end to end,
        and after it the (batch, weights, height, width) of a segmentation model's masks.
        """
        first = outputs[0]
        if self.task == "classify":
            return {"probabilities": first[:, None]}
        rows = first if self.is_end_to_end else first.transpose(0, 2, 1)
        num_scores = 1 if self.is_end_to_end else self.num_classes
        found = {"boxes": rows[..., :4], "scores": rows[..., 4 : 4 + num_scores]}
        rest = rows[..., 4 + num_scores :]
        if self.is_end_to_end:
            found["classes"], rest = rest[..., :1], rest[..., 1:]
        if self.keypoint_shape is not None:
            points = rest.reshape(*rest.shape[:2], *self.keypoint_shape)
            found["points"] = points[..., :2].reshape(*rest.shape[:2], -1)
            if self.keypoint_shape[1] > 2:
                found["visibilities"] = points[..., 2]
        elif self.task == "obb":
            found["angles"] = rest
        elif self.task == "segment":
            found["weights"] = rest
            masks = outputs[1]
            found["masks"] = masks.reshape(*masks.shape[:2], -1).transpose(0, 2, 1)
        return found


def largest_differences(expected: Mapping[str, Output], given: Mapping[str, Output]) -> dict[str, float]:
    """By part, the largest difference of one number; infinite where shapes differ or a number is not finite."""
    found = {}
    for name, part in expected.items():
        other = given[name]
        is_alike = other.shape == part.shape and bool(np.isfinite(other).all())
        found[name] = float(np.abs(other - part).max(initial=0.0)) if is_alike else float("inf")
    return found


def same_objects(expected: Parts, given: Parts) -> tuple[Parts, Parts]:
    """Rows of both end-to-end answers for one picture that stand for the same objects, strongest first.

    Such an answer holds so many of the best rows, sorted by score: rounding alone changes places, and which are the
    last. So each expected row that is clearly better than the last is looked up by its class, box and score.
    """
    cutoff = float(expected["scores"].min())
    span = float(expected["scores"].max()) - cutoff
    chosen = np.flatnonzero(expected["scores"][0, :, 0] >= cutoff + 0.05 * span)
    size = max(float(np.abs(expected["boxes"]).max(initial=1.0)), 1.0)

    def described(parts: Parts) -> Output:
        columns = [parts["boxes"][0] / size, parts["scores"][0], parts["classes"][0] * 10.0]
        return np.asarray(np.nan_to_num(np.concatenate(columns, axis=1), nan=1e6, posinf=1e6, neginf=-1e6), np.float32)

    distance = np.abs(described(expected)[chosen, None] - described(given)[None]).sum(-1)
    nearest = distance.argmin(1) if len(chosen) else np.zeros(0, np.int64)

    def taken(parts: Parts, rows: NDArray[np.intp]) -> Parts:
        return {name: part if name == "masks" else part[:, rows] for name, part in parts.items()}

    return taken(expected, chosen), taken(given, nearest)

"""What was found on a picture, as numpy arrays under the names that Ultralytics' `Results` has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadyolo.serve.letterbox import Letterbox, Shape

Floats = NDArray[np.float32]
NUM_TOP = 5
_DECIMALS = 5


class Rows:
    """Rows of numbers about a picture of `orig_shape` (height, width); indexing keeps the kind."""

    def __init__(self, data: NDArray[Any], orig_shape: Shape) -> None:
        self.data = data
        self.orig_shape = orig_shape

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> Any:
        picked = self.data[index]
        return type(self)(picked if picked.ndim == self.data.ndim else picked[None], self.orig_shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of `data`."""
        return self.data.shape

    def _normalized(self, xy: Floats) -> Floats:
        height, width = self.orig_shape
        return np.divide(xy, np.array((width, height), np.float32), dtype=np.float32)


class Boxes(Rows):
    """Shapes: `data` (N, 6), columns x1 y1 x2 y2 confidence class, in pixels of the picture."""

    @property
    def xyxy(self) -> Floats:
        """Shapes: (N, 4)."""
        return self.data[:, :4]

    @property
    def conf(self) -> Floats:
        """Shapes: (N,), 0 to 1."""
        return self.data[:, 4]

    @property
    def cls(self) -> Floats:
        """Shapes: (N,), indices of classes."""
        return self.data[:, 5]

    @property
    def xywh(self) -> Floats:
        """Shapes: (N, 4), columns centre x, centre y, width, height."""
        low, high = self.data[:, :2], self.data[:, 2:4]
        return np.concatenate(((low + high) / 2, high - low), 1)

    @property
    def xyxyn(self) -> Floats:
        """`xyxy` in shares of the picture's sides."""
        return self._normalized(self.xyxy.reshape(-1, 2, 2)).reshape(-1, 4)

    @property
    def xywhn(self) -> Floats:
        """`xywh` in shares of the picture's sides."""
        return self._normalized(self.xywh.reshape(-1, 2, 2)).reshape(-1, 4)


class RotatedBoxes(Rows):
    """Shapes: `data` (N, 7), columns centre x, centre y, width, height, radians, confidence, class."""

    @property
    def xywhr(self) -> Floats:
        """Shapes: (N, 5)."""
        return self.data[:, :5]

    @property
    def conf(self) -> Floats:
        """Shapes: (N,), 0 to 1."""
        return self.data[:, 5]

    @property
    def cls(self) -> Floats:
        """Shapes: (N,), indices of classes."""
        return self.data[:, 6]

    @property
    def xyxyxyxy(self) -> Floats:
        """The corners. Shapes: (N, 4, 2). Source: ultralytics `xywhr2xyxyxyxy`."""
        centre, sides, angle = self.data[:, :2], self.data[:, 2:4] / 2, self.data[:, 4]
        cos, sin = np.cos(angle), np.sin(angle)
        across = np.stack((sides[:, 0] * cos, sides[:, 0] * sin), -1)
        along = np.stack((-sides[:, 1] * sin, sides[:, 1] * cos), -1)
        corners = (centre + across + along, centre + across - along, centre - across - along, centre - across + along)
        return np.stack(corners, -2)

    @property
    def xyxyxyxyn(self) -> Floats:
        """`xyxyxyxy` in shares of the picture's sides."""
        return self._normalized(self.xyxyxyxy)

    @property
    def xyxy(self) -> Floats:
        """The upright box around each. Shapes: (N, 4)."""
        corners = self.xyxyxyxy
        return np.concatenate((corners.min(1), corners.max(1)), 1) if len(corners) else np.empty((0, 4), np.float32)


class Keypoints(Rows):
    """Shapes: `data` (N, points, 2 or 3), x y and, where there is a third, how visible."""

    @property
    def has_visible(self) -> bool:
        """Whether there is a third number."""
        return bool(self.data.shape[-1] == 3)

    @property
    def xy(self) -> Floats:
        """Shapes: (N, points, 2)."""
        return self.data[..., :2]

    @property
    def xyn(self) -> Floats:
        """`xy` in shares of the picture's sides."""
        return self._normalized(self.xy)

    @property
    def conf(self) -> Floats | None:
        """Shapes: (N, points)."""
        return self.data[..., 2] if self.has_visible else None


class Masks(Rows):
    """Shapes: `data` (N, height, width) of the letterboxed picture, uint8 0 or 1."""

    def __init__(self, data: NDArray[np.uint8], orig_shape: Shape, box: Letterbox) -> None:
        super().__init__(data, orig_shape)
        self.box = box

    def __getitem__(self, index: Any) -> Masks:
        picked = self.data[index]
        return Masks(picked if picked.ndim == 3 else picked[None], self.orig_shape, self.box)

    @cached_property
    def xy(self) -> list[Floats]:
        """The outline of each mask in pixels of the picture: (points, 2) each."""
        from steadyolo.serve.pictures import outline

        return [self.box.clipped(self.box.restored(outline(one))) for one in self.data]

    @property
    def xyn(self) -> list[Floats]:
        """`xy` in shares of the picture's sides."""
        return [self._normalized(one) for one in self.xy]


class Probs(Rows):
    """Shapes: `data` (classes,)."""

    @property
    def top5(self) -> list[int]:
        """The five likeliest classes, best first."""
        return [int(one) for one in np.argsort(-self.data)[:NUM_TOP]]

    @property
    def top1(self) -> int:
        """The likeliest class."""
        return int(self.data.argmax())

    @property
    def top5conf(self) -> Floats:
        """How likely the five are."""
        return self.data[self.top5]

    @property
    def top1conf(self) -> Any:
        """How likely the likeliest is."""
        return self.data[self.top1]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was found on one picture. Those of `boxes`, `obb` and `probs` that are not the task's are None."""

    orig_shape: Shape
    names: Mapping[int, str]
    boxes: Boxes | None = None
    masks: Masks | None = None
    keypoints: Keypoints | None = None
    obb: RotatedBoxes | None = None
    probs: Probs | None = None
    orig_img: NDArray[np.uint8] | None = None
    path: str | None = None
    speed: Mapping[str, float] = field(default_factory=dict)  # milliseconds: preprocess, inference, postprocess

    def __len__(self) -> int:
        found = self.obb if self.obb is not None else self.boxes
        return len(found) if found is not None else len(self.probs or ())

    def summary(self, *, normalize: bool = False, decimals: int = _DECIMALS) -> list[dict[str, Any]]:
        """JSON-ready, the same words and roundings as Ultralytics' `Results.summary()`."""
        if self.probs is not None:
            return [self._named(one, float(self.probs.data[one]), decimals) for one in self.probs.top5]
        found = self.obb if self.obb is not None else self.boxes
        if found is None or not len(found):
            return []
        height, width = self.orig_shape if normalize else (1, 1)
        corners = self.obb.xyxyxyxy if self.obb is not None else found.xyxy.reshape(-1, 2, 2)
        points = corners.tolist()
        objects = []
        for row, (class_index, confidence) in enumerate(zip(found.cls.tolist(), found.conf.tolist(), strict=True)):
            box: dict[str, float] = {}
            for number, (x, y) in enumerate(points[row], start=1):
                box[f"x{number}"], box[f"y{number}"] = round(x / width, decimals), round(y / height, decimals)
            one = self._named(int(class_index), confidence, decimals) | {"box": box}
            if self.masks is not None:
                one["segments"] = _columns(self.masks.xy[row], width, height, decimals)
            if self.keypoints is not None:
                one["keypoints"] = _columns(self.keypoints.data[row], width, height, decimals)
            objects.append(one)
        return objects

    def _named(self, class_index: int, confidence: float, decimals: int) -> dict[str, Any]:
        return {
            "name": self.names[class_index],
            "class": class_index,
            "confidence": round(confidence, decimals),
        }


def _columns(points: Floats, width: int, height: int, decimals: int) -> dict[str, list[float]]:
    columns = {
        "x": (points[:, 0] / width).astype(float).round(decimals).tolist(),
        "y": (points[:, 1] / height).astype(float).round(decimals).tolist(),
    }
    if points.shape[1] == 3:
        columns["visible"] = points[:, 2].astype(float).round(decimals).tolist()
    return columns

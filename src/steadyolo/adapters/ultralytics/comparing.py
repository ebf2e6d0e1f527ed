"""Whether a graph computes what its source model does: on pictures of several shapes, number by number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from steadyolo.adapters.runtimes.conversion import Run
from steadyolo.adapters.ultralytics.source_model import SourceModel, rounded_to_bfloat16
from steadyolo.data.boards.defect import DEFECTS
from steadyolo.data.boards.picture import take_picture
from steadyolo.errors import DataLoss, UserError
from steadyolo.serve import golden
from steadyolo.serve.answers import Layout, Parts, largest_differences, same_objects
from steadyolo.serve.golden import Picture, as_images
from steadyolo.serve.session import Images, Output

# Largest difference of one number that rounding in fp32 explains. Layers that are merged for the graph round otherwise.
TOLERANCES = {
    "boxes": 0.05,  # pixels
    "points": 0.05,
    "scores": 1e-3,  # 0 to 1
    "visibilities": 1e-3,
    "probabilities": 1e-3,
    "classes": 0.0,
    "angles": 1e-3,  # radians
    "weights": 1e-2,  # some -10 to 10
    "masks": 1e-2,
}
_STEPS = 8  # of brightness in a drawn picture: its noise would be most of the file
_SMALL_STRIDES = 2  # fewer places than end-to-end heads find objects
_LEAST_PX = 96  # of what can be drawn


@dataclass(frozen=True, slots=True)
class Trial:
    """Images of one shape, and the source model's answer."""

    images: Images
    outputs: list[Output]


def pictures(source: SourceModel, given: Path | None) -> list[Picture]:
    """The golden picture, `given` or drawn, and others, all in the shape that the model is exported for.

    Raises: UserError for a file that is no picture.
    """
    height_px, width_px = source.shape_px
    drawn = [_drawn(number, height_px, width_px) for number in range(3)]
    return drawn if given is None else [_read(given, height_px, width_px), *drawn[1:]]


def trials(source: SourceModel, shown: Sequence[Picture]) -> list[Trial]:
    """One picture in the exported shape; and two and three of them in smaller ones, down to the smallest."""
    whole = as_images(shown[0])
    lower = as_images(*(one[: _part(one.shape[0], source.stride_px)] for one in shown[:2]))
    narrower = as_images(*(one[:, -_part(one.shape[1], source.stride_px) :, ::-1] for one in shown))
    small_px = source.stride_px * _SMALL_STRIDES
    small = as_images(*(one[-small_px:, :small_px] for one in shown[1:]))
    return [Trial(images, source.run(images)) for images in (whole, lower, narrower, small)]


def compare(run: Run, tried: Sequence[Trial], source: SourceModel, *, form: str) -> dict[str, float]:
    """The largest differences by part, over all trials. Raises: DataLoss where one is more than rounding explains."""
    layout = layout_of(source)
    largest: dict[str, float] = {}
    for trial in tried:
        outputs = run(trial.images)
        if [one.shape for one in outputs] != [one.shape for one in trial.outputs]:
            raise _unlike(source, form, f"outputs of shapes {[one.shape for one in outputs]}")
        for expected, given in _pairs(layout.parts(trial.outputs), layout.parts(outputs), layout):
            for name, difference in largest_differences(expected, given).items():
                largest[name] = max(largest.get(name, 0.0), difference)
    wrong = [f"{name} by {value:.3g}" for name, value in largest.items() if not value <= TOLERANCES[name]]
    if wrong:
        raise _unlike(source, form, f"{', '.join(wrong)} (rounding explains {TOLERANCES})")
    return {f"{form} {name}": value for name, value in largest.items()}


def compare_rounded(
    run: Run, trial: Trial, source: SourceModel, measured: Mapping[str, float], *, form: str
) -> dict[str, float]:
    """The same for a graph that may round as much as sessions may: see `Golden`. Raises: DataLoss."""
    layout = layout_of(source)
    found = golden.differences(layout.parts(trial.outputs), layout.parts(run(trial.images)), layout)
    if wrong := golden.beyond(found, measured):
        raise _unlike(source, form, f"{', '.join(wrong)} of {found}")
    return {f"{form} {name}": value for name, value in found.items()}


def rounding(source: SourceModel, trial: Trial) -> dict[str, float]:
    """What computing in bfloat16 does to the answer, by part, as `Golden` measures it."""
    layout = layout_of(source)
    rounded = rounded_to_bfloat16(source).run(trial.images)
    found = golden.differences(layout.parts(trial.outputs), layout.parts(rounded), layout)
    return {f"bf16 {name}": value for name, value in found.items()}


def output_shapes(tried: Sequence[Trial]) -> dict[str, tuple[int, ...]]:
    """The outputs' shapes by name, -1 for what differs between trials."""
    shapes = zip(*([one.shape for one in trial.outputs] for trial in tried), strict=True)
    return {
        f"output{number}": tuple(sizes[0] if len(set(sizes)) == 1 else -1 for sizes in zip(*alike, strict=True))
        for number, alike in enumerate(shapes)
    }


def write_golden(folder: Path, source: SourceModel, shown: Sequence[Picture], tried: Sequence[Trial]) -> None:
    """Keep the first picture and the source model's answer."""
    golden.write_golden(folder, shown[0], tried[0].outputs, layout_of(source))


def layout_of(source: SourceModel) -> Layout:
    """How the outputs of this model are laid out."""
    return Layout(
        task=source.task,  # type: ignore[arg-type]  # one of the tasks: it was loaded
        num_classes=len(source.classes),
        is_end_to_end=source.is_end_to_end,
        keypoint_shape=source.keypoint_shape,
    )


def _pairs(expected: Parts, given: Parts, layout: Layout) -> list[tuple[Parts, Parts]]:
    if not layout.is_end_to_end:
        return [(expected, given)]
    num_images = len(expected["boxes"])

    def one(parts: Parts, number: int) -> Parts:
        return {name: part[number : number + 1] for name, part in parts.items()}

    return [same_objects(one(expected, number), one(given, number)) for number in range(num_images)]


def _unlike(source: SourceModel, form: str, how: str) -> DataLoss:
    return DataLoss(
        f"the {form} graph does not compute what the {source.task} model does: {how}",
        remedy="report it with the model's yaml; other formats may do: format=onnx",
    )


def _part(side_px: int, stride_px: int) -> int:
    """About a third of a side, in whole strides."""
    return max(round(side_px * 0.35 / stride_px), 1) * stride_px


def _drawn(number: int, height_px: int, width_px: int) -> Picture:
    size_px = (max(width_px, _LEAST_PX), max(height_px, _LEAST_PX))
    image = take_picture((2026, number), board_px=size_px, kinds=tuple(DEFECTS)).image[:height_px, :width_px, ::-1]
    return np.ascontiguousarray(image // _STEPS * _STEPS)


def _read(path: Path, height_px: int, width_px: int) -> Picture:
    from ultralytics.data.augment import LetterBox

    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise UserError(f"{path} cannot be read as a picture", remedy="give a JPEG or PNG, or leave picture= out")
    return np.ascontiguousarray(LetterBox((height_px, width_px), auto=False)(image=image)[..., ::-1])

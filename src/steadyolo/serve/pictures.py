"""The door to OpenCV for what serves: bytes to pixels, and pixels to the shape a graph takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from steadyolo.serve.headers import read_header
from steadyolo.serve.letterbox import Letterbox, Shape
from steadyolo.serve.service import BadImage

Picture = NDArray[np.uint8]
PADDING_GREY = 114  # ultralytics `LetterBox`
_MAX_TIMES_CROP = 8


MAX_PIXELS = 100_000_000  # 300 megabytes decoded: more than any camera's picture


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """BGR pixels of the first picture in `data`, upright as its EXIF says, 8 bits, without transparency.

    The same pixels as Ultralytics' `imread` of a file of that kind.
    Raises: BadImage for what is no picture, is torn, or has more than `max_pixels`, which is known before decoding.
    """
    header = read_header(data)
    size_text = f"{header.width_px:,} × {header.height_px:,} pixels"
    if header.height_px * header.width_px > max_pixels:
        raise BadImage(
            f"a {header.kind} picture of {size_text}: more than {max_pixels:,} pixels",
            remedy="send it smaller, or cut into tiles",
        )
    try:
        picture = _decoded(np.frombuffer(data, np.uint8), is_tiff=header.kind == "TIFF")
    except cv2.error:
        picture = None
    if picture is None:
        raise BadImage(f"a {header.kind} picture of {size_text} that is torn or damaged", remedy="send the file again")
    if sorted(picture.shape[:2]) != sorted((header.height_px, header.width_px)):
        raise BadImage(f"a {header.kind} picture that is not of {size_text} as it says", remedy="save it anew")
    return picture


def _decoded(data: NDArray[np.uint8], *, is_tiff: bool) -> Picture | None:
    if is_tiff:  # Ultralytics takes the colours of a TIFF as they are stored, whatever transparency and turn it names
        stored = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        if stored is not None and stored.ndim == 3 and stored.dtype in (np.uint8, np.uint16) and stored.shape[2] >= 3:
            stored = stored[..., :3] if stored.dtype == np.uint8 else (stored[..., :3] >> 8).astype(np.uint8)
            return np.ascontiguousarray(stored)
    picture: Picture | None = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return picture


def from_pil(image: Any) -> Picture:
    """BGR pixels of a PIL image. It is taken as it stands, as Ultralytics takes it: whoever opened it has turned it."""
    return np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1])


def silence() -> None:
    """Keep OpenCV from writing of each damaged picture to standard error. For programs, once, at their start."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def one_thread() -> None:
    """Keep OpenCV's threads from waiting for those of a runtime. For workers, whose pictures are one thread's each."""
    cv2.setNumThreads(1)


def as_jpeg(picture: Picture) -> bytes:
    """The picture as most cameras send theirs."""
    return cv2.imencode(".jpg", picture)[1].tobytes()


def letterboxed(picture: Picture, box: Letterbox) -> NDArray[np.float32]:
    """The picture as the graph takes it: (3, height, width), RGB, 0 to 1, grey around it."""
    height, width = box.content_px
    if picture.shape[:2] != box.content_px:
        picture = cast(Picture, cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR))
    if box.content_px != box.shape_px:
        bottom = box.shape_px[0] - height - box.top_px
        right = box.shape_px[1] - width - box.left_px
        grey = (PADDING_GREY,) * 3
        picture = cast(
            Picture,
            cv2.copyMakeBorder(picture, box.top_px, bottom, box.left_px, right, cv2.BORDER_CONSTANT, value=grey),
        )
    return _as_input(picture)


def centre_cropped(picture: Picture, shape_px: Shape) -> NDArray[np.float32]:
    """The middle of the picture, scaled so that its shorter side fills the shape: (3, height, width), RGB, 0 to 1.

    A picture of 1 × 30,000 costs no more than any other.
    Source: ultralytics `classify_transforms`: torchvision's Resize and CenterCrop on a PIL image, which smooths.
    """
    from PIL import Image  # classification alone needs it

    height, width = picture.shape[:2]
    if shape_px[0] == shape_px[1]:
        short, long = sorted((height, width))
        full_px = (shape_px[0], int(shape_px[0] * long / short))
        full_height, full_width = full_px if height <= width else full_px[::-1]
    else:
        full_height, full_width = shape_px
    top, left = round((full_height - shape_px[0]) / 2.0), round((full_width - shape_px[1]) / 2.0)
    image = Image.fromarray(picture)
    bilinear = Image.Resampling.BILINEAR
    if full_height * full_width <= _MAX_TIMES_CROP * shape_px[0] * shape_px[1]:
        image = image.resize((full_width, full_height), bilinear)
        image = image.crop((left, top, left + shape_px[1], top + shape_px[0]))
    else:  # long and thin: only the pixels that stay, their numbers within one of the others'
        scale_y, scale_x = height / full_height, width / full_width
        right, bottom = min((left + shape_px[1]) * scale_x, width), min((top + shape_px[0]) * scale_y, height)
        image = image.resize(shape_px[::-1], bilinear, box=(left * scale_x, top * scale_y, right, bottom))
    return _as_input(np.asarray(image))


def _as_input(picture: Picture) -> NDArray[np.float32]:
    """Channels first, RGB, divided and not multiplied: Ultralytics' numbers to the last bit."""
    values = cast(NDArray[np.float32], cv2.dnn.blobFromImage(picture, swapRB=True)[0])
    return np.divide(values, np.float32(255), out=values)


def enlarged(image: NDArray[np.float32], shape_px: Shape) -> NDArray[np.float32]:
    """Bilinear, edges repeated: as torch's `interpolate`."""
    return cast(NDArray[np.float32], cv2.resize(image, (shape_px[1], shape_px[0]), interpolation=cv2.INTER_LINEAR))


def outline(mask: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Points around a mask, its parts joined one after the other at their closest points.

    Shapes: (height, width), 0 or 1, in; (points, 2), columns x y, out.
    Source: ultralytics `masks2segments` and `merge_multi_segment`.
    """
    found = cv2.findContours(np.ascontiguousarray(mask), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    parts = [np.asarray(one).reshape(-1, 2) for one in found]
    if not parts:
        return np.empty((0, 2), np.float32)
    joined = parts[0] if len(parts) == 1 else _joined(parts)
    return joined.astype(np.float32)


def _joined(parts: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    """One closed line through all parts: to the last one along one side of each, and back along the other."""
    doors: list[list[int]] = [[] for _ in parts]  # where the line leaves or enters each part
    for number in range(1, len(parts)):
        before, after = _closest(parts[number - 1], parts[number])
        doors[number - 1].append(before)
        doors[number].append(after)
    there: list[NDArray[np.int32]] = []
    back: list[NDArray[np.int32]] = []
    for part, door in zip(parts, doors, strict=True):
        if len(door) == 2 and door[0] > door[1]:
            part, door = part[::-1], [len(part) - 1 - one for one in door]  # the same part, other way round
        ring = np.roll(part, -door[0], axis=0)
        ring = np.concatenate((ring, ring[:1]))
        if len(door) == 1:
            there.append(ring)
        else:
            there.append(ring[: door[1] - door[0] + 1])
            back.append(ring[door[1] - door[0] :])
    return np.concatenate((*there, *back[::-1]))


def _closest(one: NDArray[np.int32], other: NDArray[np.int32]) -> tuple[int, int]:
    """Indices of the two points that are nearest to each other."""
    distance2 = ((one[:, None, :] - other[None, :, :]) ** 2).sum(-1)
    first, second = np.unravel_index(int(distance2.argmin()), distance2.shape)
    return int(first), int(second)


# --- drawing, saving and films: for people ---


def outline_of(picture: Picture, points: NDArray[np.float32], colour: tuple[int, int, int]) -> None:
    """Draw a closed line. Shapes: (points, 2)."""
    cv2.polylines(picture, [np.rint(points).astype(np.int32)], True, colour, _thickness(picture), cv2.LINE_AA)


def fill(picture: Picture, points: NDArray[np.float32], colour: tuple[int, int, int]) -> None:
    """Tint what a line encloses. Shapes: (points, 2)."""
    if len(points) < 3:
        return
    tinted = picture.copy()
    cv2.fillPoly(tinted, [np.rint(points).astype(np.int32)], colour)
    cv2.addWeighted(tinted, 0.4, picture, 0.6, 0, dst=picture)


def dot(picture: Picture, xy: tuple[float, float], colour: tuple[int, int, int]) -> None:
    """Draw a point."""
    cv2.circle(picture, (round(xy[0]), round(xy[1])), _thickness(picture) + 2, colour, -1, cv2.LINE_AA)


def write(picture: Picture, text: str, xy: tuple[float, float], colour: tuple[int, int, int]) -> None:
    """Write a line of text whose left lower corner is `xy`, or as near as it can be read."""
    at = (max(0, round(xy[0])), max(14, round(xy[1])))
    size, width = max(0.4, _thickness(picture) / 3), max(1, _thickness(picture) - 1)
    cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), width + 2, cv2.LINE_AA)
    cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, colour, width, cv2.LINE_AA)


def _thickness(picture: Picture) -> int:
    return max(2, round(sum(picture.shape[:2]) / 2 * 0.003))


def save(picture: Picture, path: Path) -> None:
    """Write a file of the kind that the name ends with. Raises: OSError."""
    written, data = cv2.imencode(path.suffix, picture)
    if not written:
        raise OSError(f"{path}: cannot be encoded")
    path.write_bytes(data.tobytes())


def video(source: str | int) -> Iterator[Picture]:
    """The frames of a film or a camera until it ends; none where it cannot be opened."""
    capture = cv2.VideoCapture(source)
    try:
        while True:
            has_frame, picture = capture.read()
            if not has_frame:
                return
            yield picture
    finally:
        capture.release()

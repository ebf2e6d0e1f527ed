"""`Picture`: a photograph of a board and the truth about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from steadyolo.data.boards.defect import BARE, COPPER, HOLE, METAL, Defect, Image, add_defects
from steadyolo.data.boards.layout import Layout, Pad, Point, lay_out

PITCHES_PER_SIDE = (13.0, 21.0)  # of a square picture; a defect then spans 4 to 13 or 3 to 8 % of it
PITCH_PX = 22.0  # aimed at within these limits: small pictures show less of a board, so that defects stay visible
POUR_CLEARANCE = 0.3  # pitches between a ground area and what is not connected to it
MIN_POUR = 1.5  # square pitches
GREEN = ((22, 26, 20), (44, 74, 24), (78, 142, 62), (128, 196, 208))  # BGR of HOLE, BARE, COPPER, METAL
GREY = ((18, 18, 18), (66, 70, 66), (150, 154, 150), (216, 218, 216))


@dataclass(frozen=True, slots=True)
class Picture:
    """What the camera saw, and what is wrong with the board. An `image` depends on nothing but the arguments."""

    image: Image  # (H, W, 3), BGR
    defects: tuple[Defect, ...]


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a board that a picture shows, in pixels: `size_px` from `corner_px` on."""

    corner_px: tuple[int, int]
    size_px: tuple[int, int]


def take_picture(
    key: Sequence[int], *, board_px: tuple[int, int], kinds: Sequence[str], crop_px: tuple[int, int] | None = None
) -> Picture:
    """Draw the board of `key` with `kinds` of defects, as many of them as find room.

    The board, the defects and the photograph draw from streams of their own: with other `kinds` the rest is the same.
    With `crop_px`, only so many pixels around the first defect are shown; the truth keeps the board's coordinates.
    """
    streams = [np.random.default_rng([*key, stream]) for stream in range(3)]
    side_px = math.sqrt(board_px[0] * board_px[1])
    pitch_px = side_px / float(np.clip(side_px / PITCH_PX, *PITCHES_PER_SIDE)) * streams[0].uniform(0.9, 1.1)
    layout = lay_out(streams[0], (board_px[0] / pitch_px, board_px[1] / pitch_px))
    scale = min(8, max(2, math.ceil(40 / pitch_px)))  # drawn larger, then averaged: smooth edges at any size
    copper = _draw_copper(layout, board_px, pitch=pitch_px * scale, scale=scale)
    defects = add_defects(streams[1], copper, layout, pitch=pitch_px * scale, scale=scale, kinds=kinds)
    window = Window((0, 0), board_px)
    if crop_px is not None and defects:
        window = _window_on(defects[0], board_px, crop_px, streams[2])
    return Picture(_photograph(streams[2], copper, layout, window, pitch_px=pitch_px, scale=scale), tuple(defects))


def _draw_copper(layout: Layout, board_px: tuple[int, int], *, pitch: float, scale: int) -> Image:
    copper = np.full((board_px[1] * scale, board_px[0] * scale), BARE, np.uint8)
    traces = [_pixels(trace, pitch) for trace in layout.traces]
    width = layout.trace_width * pitch
    cv2.fillPoly(copper, [_pixels(pour, pitch) for pour in layout.pours], COPPER)
    cv2.polylines(copper, traces, isClosed=False, color=BARE, thickness=round(width + 2 * POUR_CLEARANCE * pitch))
    for pad in layout.pads:
        _draw_pad(copper, pad, pitch, grow=POUR_CLEARANCE, value=BARE)
    _remove_slivers(copper, MIN_POUR * pitch**2)
    cv2.polylines(copper, traces, isClosed=False, color=COPPER, thickness=round(width))
    for pad in layout.pads:
        _draw_pad(copper, pad, pitch, grow=0.0, value=METAL)
        if pad.hole:
            cv2.circle(copper, _pixel(pad.centre, pitch), round(pad.hole * pitch), HOLE, cv2.FILLED)
    return copper


def _remove_slivers(pours: Image, least_area: float) -> None:
    """Drop what is left of ground between pads and traces: small islands would pass for spurious copper."""
    mask = cv2.threshold(pours, BARE, 1, cv2.THRESH_BINARY)[1]
    contours, family = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)  # outer edges, and holes' edges
    islands = [c for c, (_, _, _, parent) in zip(contours, family[0], strict=True) if parent < 0] if contours else []
    small = [island for island in islands if cv2.contourArea(island) < least_area]
    cv2.drawContours(pours, small, -1, BARE, cv2.FILLED)


def _draw_pad(copper: Image, pad: Pad, pitch: float, *, grow: float, value: int) -> None:
    (x, y), (w, h) = pad.centre, (pad.half[0] + grow, pad.half[1] + grow)
    if pad.is_round:
        cv2.ellipse(copper, _pixel((x, y), pitch), _pixel((w, h), pitch), 0, 0, 360, value, cv2.FILLED)
    else:
        cv2.rectangle(copper, _pixel((x - w, y - h), pitch), _pixel((x + w, y + h), pitch), value, cv2.FILLED)


def _window_on(defect: Defect, board_px: tuple[int, int], crop_px: tuple[int, int], rng: np.random.Generator) -> Window:
    """A window that holds all of `defect`, not always in its middle."""
    corner = []
    for axis in (0, 1):
        low, high = defect.box[axis], defect.box[axis + 2]
        slack = max(0.0, crop_px[axis] - (high - low)) / 3
        start = (low + high - crop_px[axis]) / 2 + rng.uniform(-slack, slack)
        corner.append(int(np.clip(round(start), 0, board_px[axis] - crop_px[axis])))
    return Window((corner[0], corner[1]), crop_px)


def _photograph(
    rng: np.random.Generator, copper: Image, layout: Layout, window: Window, *, pitch_px: float, scale: int
) -> Image:
    """What a camera makes of it: colours, white print, light that falls off, a soft lens and a noisy sensor."""
    (x, y), (w, h) = window.corner_px, window.size_px
    shown = copper[y * scale : (y + h) * scale, x * scale : (x + w) * scale]
    level = cv2.resize(shown, (w, h), interpolation=cv2.INTER_AREA)
    colours = np.array(GREEN if rng.random() < 0.7 else GREY) * rng.uniform(0.85, 1.15, (4, 1)) + rng.uniform(-6, 6, 3)
    palette = np.stack([np.interp(np.arange(256), (HOLE, BARE, COPPER, METAL), c) for c in colours.T])
    level = cv2.GaussianBlur(level, (0, 0), max(0.5, pitch_px * rng.uniform(0.012, 0.03)))
    image = cv2.merge([cv2.LUT(level, table) for table in palette.clip(0, 255).astype(np.uint8)])
    _print_labels(image, layout, window, pitch_px)

    across, down = np.meshgrid(np.linspace(-1, 1, 32), np.linspace(-1, 1, 24))
    light = 1 + rng.uniform(-0.14, 0.14) * across + rng.uniform(-0.14, 0.14) * down
    light += rng.uniform(0, 0.1) * (1 - across**2 - down**2) + rng.normal(0, 0.012, light.shape)
    light_u8 = cv2.resize((light * 128).clip(0, 255).astype(np.uint8), (w, h), interpolation=cv2.INTER_LINEAR)
    image = cv2.multiply(image, cv2.merge([light_u8] * 3), scale=1 / 128)

    noise = rng.bit_generator.random_raw(math.ceil(image.size / 8)).view(np.uint8)[: image.size].reshape(image.shape)
    strength = rng.uniform(0.02, 0.06)
    return np.asarray(cv2.addWeighted(image, 1.0, noise, strength, -127.5 * strength), np.uint8)


def _print_labels(image: Image, layout: Layout, window: Window, pitch_px: float) -> None:
    white, thickness = (206, 212, 208), max(1, round(pitch_px * 0.06))
    corner = np.array(window.corner_px)
    for label in layout.labels:
        centre, half = np.array(label.centre) * pitch_px - corner, np.array(label.half) * pitch_px
        (x1, y1), (x2, y2) = np.rint(centre - half).astype(int), np.rint(centre + half).astype(int)
        cv2.rectangle(image, (int(x1), int(y1)), (int(x2), int(y2)), white, thickness, cv2.LINE_AA)
        font = cv2.FONT_HERSHEY_SIMPLEX
        (w, _), _ = cv2.getTextSize(label.text, font, 1.0, thickness)
        size = min(pitch_px / 30, 0.8 * (x2 - x1) / w)
        (w, h), _ = cv2.getTextSize(label.text, font, size, thickness)
        start = (int(centre[0] - w / 2), int(centre[1] + h / 2))
        cv2.putText(image, label.text, start, font, size, white, thickness, cv2.LINE_AA)


def _pixel(point: Point, pitch: float) -> tuple[int, int]:
    return (round(point[0] * pitch), round(point[1] * pitch))


def _pixels(points: Sequence[Point], pitch: float) -> NDArray[np.int32]:
    return np.rint(np.asarray(points) * pitch).astype(np.int32)

"""`Defect`: one fault of a board's copper, and the outline of exactly what it changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from steadyolo.data.boards.layout import Layout, Point

DEFECTS: tuple[str, ...] = ("open", "short", "mousebite", "spur", "spurious_copper", "pin_hole")

HOLE, BARE, COPPER, METAL = (
    0,
    64,
    150,
    235,
)  # the copper picture's pixels; METAL is copper without mask
NUM_TRIES = 80  # places tried before a defect is given up

Image = NDArray[np.uint8]
Points = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Defect:
    """A fault and its truth. All coordinates in pixels of the finished picture; none lies outside it."""

    kind: str
    box: tuple[float, float, float, float]  # x1 y1 x2 y2, the edges of the changed pixels
    outline: Points  # (N, 2), N >= 3
    corners: Points  # (4, 2), the smallest rectangle around it at any angle

    @property
    def ends(self) -> Points:
        """(2, 2): both ends of the long axis, the upper one first (a mirrored picture keeps that order)."""
        a, b, c, d = self.corners
        long_first = np.hypot(*(b - a)) >= np.hypot(*(c - b))
        ends = np.stack([(a + d) / 2, (b + c) / 2] if long_first else [(a + b) / 2, (c + d) / 2])
        return ends[np.lexsort((ends[:, 0], ends[:, 1]))]


@dataclass(frozen=True, slots=True)
class _Sort:
    """How a kind is drawn, and what has to be true of the copper for it to be of that kind."""

    adds: bool  # copper appears; otherwise it vanishes
    new_copper: int  # change in the number of separate pieces of copper nearby
    new_bare: int | None  # the same for the places without; None where it may be anything
    clearance: float  # pitches by which the above must still hold when the change is grown on all sides
    draw: Callable[[np.random.Generator, _Board], list[Points] | None]


@dataclass(frozen=True, slots=True)
class _Board:
    copper: Image
    layout: Layout
    pitch: float  # in pixels of `copper`


def add_defects(
    rng: np.random.Generator, copper: Image, layout: Layout, *, pitch: float, scale: int, kinds: Sequence[str]
) -> list[Defect]:
    """Change `copper` in place by one defect for each of `kinds`, and return them; fewer where no room is found.

    Shapes: copper (H, W). `pitch` is in its pixels, of which `scale` go into one pixel of the finished picture.
    """
    board = _Board(copper, layout, pitch)
    taken = [_around(label.centre, (1.1, 0.6), pitch) for label in layout.labels]
    defects = []
    for kind in kinds:
        found = _place(rng, board, kind, taken, scale)
        if found is not None:
            defects.append(found)
            x1, y1, x2, y2 = (edge * scale for edge in found.box)
            taken.append((x1 - pitch / 2, y1 - pitch / 2, x2 + pitch / 2, y2 + pitch / 2))
    return defects


def _place(
    rng: np.random.Generator, board: _Board, kind: str, taken: list[tuple[float, float, float, float]], scale: int
) -> Defect | None:
    sort = _SORTS[kind]
    for _ in range(NUM_TRIES):
        shapes = sort.draw(rng, board)
        if shapes is None:
            continue
        every = np.concatenate(shapes)
        x1, y1 = np.floor(every.min(0)).astype(int)
        x2, y2 = np.ceil(every.max(0)).astype(int) + 1
        rim = int(0.5 * board.pitch)  # what is nearby; also keeps defects off the picture's edge
        if x1 < rim or y1 < rim or x2 > board.copper.shape[1] - rim or y2 > board.copper.shape[0] - rim:
            continue
        if any(x1 < right and left < x2 and y1 < bottom and top < y2 for left, top, right, bottom in taken):
            continue
        corner = (x1 - rim, y1 - rim)
        patch = board.copper[y1 - rim : y2 + rim, x1 - rim : x2 + rim]
        changed = _change(patch, [shape - corner for shape in shapes], sort, grow=int(sort.clearance * board.pitch))
        if changed is None:
            continue
        defect = _measure(kind, changed, corner, scale)
        if max(defect.box[2] - defect.box[0], defect.box[3] - defect.box[1]) * scale >= 0.6 * board.pitch:
            patch[changed > 0] = COPPER if sort.adds else BARE
            return defect
    return None


def _change(patch: Image, shapes: list[Points], sort: _Sort, *, grow: int) -> Image | None:
    """Pixels of `patch` that drawing `shapes` changes, as 0 or 1; None if the result would not be of this sort."""
    drawn = np.zeros_like(patch)
    for shape in shapes:
        cv2.fillPoly(drawn, [np.rint(shape).astype(np.int32)], 1)
    copper = (patch >= COPPER).astype(np.uint8)
    changed = drawn & (patch == BARE) if sort.adds else drawn & copper
    if not changed.any() or (not sort.adds and (drawn[patch == HOLE]).any()):
        return None
    if _num_pieces(changed) > len(shapes):
        return None
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * grow + 1, 2 * grow + 1))
    grown = cv2.dilate(changed, disc) if grow else changed
    after = copper | grown if sort.adds else copper & (1 - grown)
    if _num_pieces(after) - _num_pieces(copper) != sort.new_copper:
        return None
    if sort.new_bare is not None and _num_pieces(1 - after) - _num_pieces(1 - copper) != sort.new_bare:
        return None
    return changed


def _num_pieces(mask: Image) -> int:
    return int(cv2.connectedComponents(mask, connectivity=4)[0]) - 1


def _measure(kind: str, changed: Image, corner: tuple[int, int], scale: int) -> Defect:
    """The truth about `changed`, whose upper left pixel lies at `corner`."""
    contours, _ = cv2.findContours(changed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    points = np.concatenate(contours)[:, 0, :]
    edges = np.concatenate([points + offset for offset in ((0, 0), (1, 0), (0, 1), (1, 1))])  # pixels have a width
    corners = cv2.boxPoints(cv2.minAreaRect(edges.astype(np.float32))).astype(np.float64)
    whole = contours[0] + 0.5 if len(contours) == 1 else cv2.convexHull(edges)
    outline = cv2.approxPolyDP(whole.astype(np.float32), 0.3 * scale, closed=True)[:, 0, :].astype(np.float64)
    if len(outline) < 3:
        outline = corners
    (x1, y1), (x2, y2) = (edges.min(0) + corner) / scale, (edges.max(0) + corner) / scale
    return Defect(kind, (x1, y1, x2, y2), (outline + corner) / scale, (corners + corner) / scale)


def _draw_open(rng: np.random.Generator, board: _Board) -> list[Points] | None:
    at = _spot_on_trace(rng, board)
    if at is None:
        return None
    spot, angle = at
    return [_blob(rng, board, spot, (rng.uniform(0.4, 0.8), 0.85 * board.layout.trace_width), angle)]


def _draw_short(rng: np.random.Generator, board: _Board) -> list[Points] | None:
    at = _spot_on_trace(rng, board)
    if at is None:
        return None
    spot, angle = at
    angle += rng.choice((-0.5, 0.5)) * np.pi
    towards = np.array([np.cos(angle), np.sin(angle)])
    reach = np.arange(0.0, 2.2, 0.04)
    xy = np.rint((spot + reach[:, None] * towards) * board.pitch).astype(int)
    if (xy < 0).any() or (xy >= board.copper.shape[::-1]).any():
        return None
    gap = np.flatnonzero(board.copper[xy[:, 1], xy[:, 0]] < COPPER)
    if len(gap) == 0 or gap[0] == 0:
        return None
    other = np.flatnonzero(board.copper[xy[gap[0] :, 1], xy[gap[0] :, 0]] >= COPPER)
    if len(other) == 0 or not 0.3 <= reach[other[0]] <= 1.5:
        return None
    middle = spot + towards * (reach[gap[0]] + reach[other[0]] / 2)
    return [_blob(rng, board, middle, (reach[other[0]] / 2 + 0.3, rng.uniform(0.3, 0.55)), angle)]


def _draw_mousebite(rng: np.random.Generator, board: _Board) -> list[Points] | None:
    at = _spot_on_trace(rng, board)
    if at is None:
        return None
    spot, angle = at
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    edge = spot + across * rng.choice((-0.5, 0.5)) * board.layout.trace_width
    bites, offset = [], 0.0
    for _ in range(rng.integers(1, 4)):
        radius = rng.uniform(0.5, 0.68) * board.layout.trace_width
        offset += radius
        bites.append(_blob(rng, board, edge + along * offset, (radius, radius), angle))
        offset += radius * rng.uniform(0.7, 1.1)
    return bites


def _draw_spur(rng: np.random.Generator, board: _Board) -> list[Points] | None:
    at = _spot_on_trace(rng, board)
    if at is None:
        return None
    spot, angle = at
    angle += rng.choice((-0.5, 0.5)) * np.pi + rng.uniform(-0.6, 0.6)
    length = rng.uniform(0.55, 1.2)
    centre = spot + np.array([np.cos(angle), np.sin(angle)]) * (length / 2 + 0.4 * board.layout.trace_width)
    return [_blob(rng, board, centre, (length / 2, rng.uniform(0.2, 0.34)), angle)]


def _draw_spurious_copper(rng: np.random.Generator, board: _Board) -> list[Points] | None:
    radii = (rng.uniform(0.35, 0.75), rng.uniform(0.28, 0.45))
    return [_blob(rng, board, rng.uniform((0, 0), board.layout.size), radii, rng.uniform(0, np.pi))]


def _draw_pin_hole(rng: np.random.Generator, board: _Board) -> list[Points] | None:
    wide = [pad for pad in board.layout.pads if min(pad.half) >= 0.9]
    areas = [np.array(pad.centre) + np.outer((-1.0, 1.0), pad.half) for pad in wide]
    areas += [np.asarray(pour) for pour in board.layout.pours]
    area = areas[rng.integers(len(areas))]
    spot = rng.uniform(area.min(0), area.max(0))
    return [_blob(rng, board, spot, (rng.uniform(0.3, 0.55), rng.uniform(0.25, 0.4)), rng.uniform(0, np.pi))]


def _spot_on_trace(rng: np.random.Generator, board: _Board) -> tuple[Points, float] | None:
    """A place on the middle of a straight run, away from its ends, and the run's angle."""
    runs = board.layout.runs(at_least=1.9)
    if not runs:
        return None
    a, b = np.asarray(runs[rng.integers(len(runs))])
    angle = float(np.arctan2(b[1] - a[1], b[0] - a[0]))
    margin = 0.6 / np.hypot(*(b - a))
    return a + (b - a) * rng.uniform(margin, 1 - margin), angle


def _blob(rng: np.random.Generator, board: _Board, centre: Points, radii: tuple[float, float], angle: float) -> Points:
    """An uneven ellipse, as etching leaves them, in pixels of the copper picture."""
    turn = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    uneven = 1 + sum(rng.uniform(0, 0.22 / n) * np.sin(n * turn + rng.uniform(0, 2 * np.pi)) for n in (2, 3, 5))
    x, y = radii[0] * uneven * np.cos(turn), radii[1] * uneven * np.sin(turn)
    cos, sin = np.cos(angle), np.sin(angle)
    return (np.stack([x * cos - y * sin, x * sin + y * cos], 1) + centre) * board.pitch


def _around(centre: Point, half: Point, pitch: float) -> tuple[float, float, float, float]:
    (x, y), (w, h) = centre, half
    return ((x - w) * pitch, (y - h) * pitch, (x + w) * pitch, (y + h) * pitch)


_SORTS = {
    "open": _Sort(adds=False, new_copper=1, new_bare=None, clearance=0.0, draw=_draw_open),
    "short": _Sort(adds=True, new_copper=-1, new_bare=None, clearance=0.0, draw=_draw_short),
    "mousebite": _Sort(adds=False, new_copper=0, new_bare=0, clearance=0.07, draw=_draw_mousebite),
    "spur": _Sort(adds=True, new_copper=0, new_bare=0, clearance=0.12, draw=_draw_spur),
    "spurious_copper": _Sort(adds=True, new_copper=1, new_bare=None, clearance=0.15, draw=_draw_spurious_copper),
    "pin_hole": _Sort(adds=False, new_copper=0, new_bare=1, clearance=0.12, draw=_draw_pin_hole),
}

"""`Layout`: where a board's copper lies. Plain geometry in units of the grid's pitch; nothing is drawn here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

Point = tuple[float, float]
Node = tuple[int, int]

HEADINGS: tuple[Node, ...] = ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1))  # 45 degrees each
FRAME = 2  # grid nodes outside the picture on each side, so that traces can leave it
FULL_SHARE = 0.5  # routing stops here: spurious copper needs bare places


@dataclass(frozen=True, slots=True)
class Pad:
    """Bare metal at `centre`; a rectangle, or an ellipse if `is_round`. `hole` is the drill's radius, 0 for none."""

    centre: Point
    half: Point
    is_round: bool = False
    hole: float = 0.0


@dataclass(frozen=True, slots=True)
class Label:
    """White print: a text around `centre`, inside an outline of half sides `half`."""

    centre: Point
    half: Point
    text: str


@dataclass(frozen=True, slots=True)
class Layout:
    """One board. Lengths and positions in pitches; the picture spans (0, 0) to `size`, copper may reach beyond it."""

    size: Point
    trace_width: float
    traces: tuple[tuple[Point, ...], ...]  # corner points, 0, 45 or 90 degrees between neighbours
    pads: tuple[Pad, ...]
    pours: tuple[tuple[Point, ...], ...]  # outlines of ground areas; traces and pads keep clear of them
    labels: tuple[Label, ...]

    def runs(self, *, at_least: float) -> list[tuple[Point, Point]]:
        """Straight pieces of traces that are `at_least` so long."""
        pieces = [pair for trace in self.traces for pair in pairwise(trace)]
        return [(a, b) for a, b in pieces if np.hypot(b[0] - a[0], b[1] - a[1]) >= at_least]


def lay_out(rng: np.random.Generator, size: Point) -> Layout:
    """A board of `size` pitches: parts first, then traces from their pads, then buses until it is full, then ground."""
    grid = _Grid(rng, size)
    rows = [*_parts(grid, rng)]
    for starts, heading in rows:
        grid.route(starts, heading, begins_at_pad=True)
    for _ in range(60):
        if grid.share_taken() > FULL_SHARE:
            break
        starts, heading = grid.draw_bus()
        grid.route(starts, heading, begins_at_pad=False)
    return Layout(
        size=size,
        trace_width=float(rng.uniform(0.44, 0.54)),
        traces=tuple(grid.traces),
        pads=tuple(grid.pads),
        pours=tuple(_pour(rng, size) for _ in range(rng.integers(2, 4))),
        labels=tuple(grid.labels),
    )


class _Grid:
    """The nodes that parts and traces have taken, and what lies on them so far."""

    def __init__(self, rng: np.random.Generator, size: Point) -> None:
        self.rng = rng
        self.size = size
        self.num_nodes = (int(size[0]) + 2 * FRAME, int(size[1]) + 2 * FRAME)
        self.origin = rng.uniform(0.2, 0.8, 2)  # the grid is not lined up with the picture
        self.taken: set[Node] = set()  # in half pitches: the middles of steps count too, so that diagonals cannot cross
        self.traces: list[tuple[Point, ...]] = []
        self.pads: list[Pad] = []
        self.labels: list[Label] = []

    def place(self, node: Node) -> Point:
        return (float(node[0] - FRAME + self.origin[0]), float(node[1] - FRAME + self.origin[1]))

    def is_free(self, node: Node) -> bool:
        inside = 0 <= node[0] < self.num_nodes[0] and 0 <= node[1] < self.num_nodes[1]
        return inside and (2 * node[0], 2 * node[1]) not in self.taken

    def take(self, nodes: Iterable[Node]) -> bool:
        """Take all of `nodes`, or none of them and return False."""
        wanted = list(nodes)
        if not all(self.is_free(node) for node in wanted):
            return False
        self.taken.update((2 * x, 2 * y) for x, y in wanted)
        return True

    def share_taken(self) -> float:
        return sum(1 for x, y in self.taken if not (x % 2 or y % 2)) / (self.num_nodes[0] * self.num_nodes[1])

    def draw_node(self) -> Node:
        return (int(self.rng.integers(self.num_nodes[0])), int(self.rng.integers(self.num_nodes[1])))

    def draw_bus(self) -> tuple[list[Node], int]:
        """Neighbouring start nodes, and the heading across them."""
        heading = 2 * int(self.rng.integers(4))
        (x, y), (dx, dy) = self.draw_node(), HEADINGS[(heading + 2) % 8]
        return [(x + i * dx, y + i * dy) for i in range(self.rng.integers(2, 6))], heading

    def route(self, starts: list[Node], heading: int, *, begins_at_pad: bool) -> None:
        """Lead parallel traces from `starts`, each as far as it is free; what does not end at a pad ends at a via."""
        side = int(self.rng.choice((-1, 1)))
        first, slant, last = (int(n) for n in self.rng.integers((1, 1, 3), (6, 4, 14)))
        is_turning = self.rng.random() < 0.5
        ahead = HEADINGS[(heading + 2 * side) % 8]
        depth = [x * ahead[0] + y * ahead[1] for x, y in starts]
        for start, own_depth in zip(starts, depth, strict=True):
            stagger = max(depth) - own_depth if is_turning else 0  # the outer ones turn later and stay apart
            plan = (
                (heading, first),
                (heading + side, slant + stagger),
                (heading + 2 * side if is_turning else heading, last),
            )
            if not begins_at_pad and not self.take([start]):
                continue
            path = self._walk(start, plan)
            if len(path) > 2 or (begins_at_pad and len(path) == 2):
                self.traces.append(tuple(self.place(node) for node in _corners(path)))
                self.pads += [self._via(node) for node in (path[-1:] if begins_at_pad else (path[0], path[-1]))]

    def _walk(self, start: Node, plan: Iterable[tuple[int, int]]) -> list[Node]:
        path = [start]
        for heading, length in plan:
            dx, dy = HEADINGS[heading % 8]
            for _ in range(length):
                x, y = path[-1]
                middle = (2 * x + dx, 2 * y + dy)
                if middle in self.taken or not self.take([(x + dx, y + dy)]):
                    return path
                self.taken.add(middle)
                path.append((x + dx, y + dy))
        return path

    def _via(self, node: Node) -> Pad:
        return Pad(self.place(node), (0.37, 0.37), is_round=True, hole=0.17)


def _parts(grid: _Grid, rng: np.random.Generator) -> Iterator[tuple[list[Node], int]]:
    """Put parts on the grid; yields each row of pads with the heading that leads away from the part."""
    area = grid.size[0] * grid.size[1]
    for _ in range(max(3, round(area / 130))):  # pads and rings large enough to hold a pin hole
        _add_large_pad(grid, rng)
    for _ in range(max(1, round(area / 90))):
        yield from _add_chip(grid, rng)
    for _ in range(max(1, round(area / 110))):
        yield from _add_connector(grid, rng)
    for _ in range(max(2, round(area / 45))):
        yield from _add_passive(grid, rng)


def _add_large_pad(grid: _Grid, rng: np.random.Generator) -> None:
    x, y = grid.draw_node()
    if grid.take((x + i, y + j) for i in (-1, 0, 1) for j in (-1, 0, 1)):
        if rng.random() < 0.3:
            grid.pads.append(Pad(grid.place((x, y)), (1.35, 1.35), is_round=True, hole=float(rng.uniform(0.5, 0.7))))
        else:
            half_w, half_h = rng.uniform(1.0, 1.4, 2)
            grid.pads.append(Pad(grid.place((x, y)), (float(half_w), float(half_h))))


def _add_chip(grid: _Grid, rng: np.random.Generator) -> Iterator[tuple[list[Node], int]]:
    length, width = int(rng.integers(3, 8)), int(rng.integers(4, 6))
    lies = rng.random() < 0.5
    (x, y), (along, across) = grid.draw_node(), ((1, 0), (0, 1)) if lies else ((0, 1), (1, 0))
    nodes = [
        [(x + i * along[0] + j * across[0], y + i * along[1] + j * across[1]) for i in range(length)]
        for j in range(width)
    ]
    if not grid.take(node for row in nodes for node in row):
        return
    half = (0.3, 0.58) if lies else (0.58, 0.3)
    away = 2 if lies else 0
    grid.pads += [Pad(grid.place(node), half) for row in (nodes[0], nodes[-1]) for node in row]
    (x0, y0), (x1, y1) = grid.place(nodes[0][0]), grid.place(nodes[-1][-1])
    body = (abs(x1 - x0) / 2 + (0.3 if lies else -0.75), abs(y1 - y0) / 2 + (-0.75 if lies else 0.3))
    grid.labels.append(Label(((x0 + x1) / 2, (y0 + y1) / 2), body, f"U{rng.integers(1, 20)}"))
    yield nodes[0], away + 4
    yield nodes[-1], away


def _add_connector(grid: _Grid, rng: np.random.Generator) -> Iterator[tuple[list[Node], int]]:
    (x, y), (dx, dy) = grid.draw_node(), HEADINGS[2 * int(rng.integers(2))]
    row = [(x + i * dx, y + i * dy) for i in range(rng.integers(3, 8))]
    if grid.take(row):
        grid.pads += [Pad(grid.place(node), (0.4, 0.4), is_round=i > 0, hole=0.2) for i, node in enumerate(row)]
        yield row, (2 if dx else 0) + 4 * int(rng.integers(2))


def _add_passive(grid: _Grid, rng: np.random.Generator) -> Iterator[tuple[list[Node], int]]:
    heading = 2 * int(rng.integers(2))
    (x, y), (dx, dy) = grid.draw_node(), HEADINGS[heading]
    nodes = [(x + i * dx, y + i * dy) for i in range(3)]
    if grid.take(nodes):
        half = (0.42, 0.55) if dx else (0.55, 0.42)
        grid.pads += [Pad(grid.place(nodes[0]), half), Pad(grid.place(nodes[2]), half)]
        yield [nodes[0]], heading + 4
        yield [nodes[2]], heading


def _pour(rng: np.random.Generator, size: Point) -> tuple[Point, ...]:
    """A rectangle with cut corners, perhaps partly outside the picture."""
    x, y = rng.uniform((0.0, 0.0), size)
    w, h = rng.uniform(2.5, 6.0, 2)
    cut = float(rng.uniform(0.4, 1.2))
    x0, y0, x1, y1 = float(x - w), float(y - h), float(x + w), float(y + h)
    return (
        (x0 + cut, y0), (x1 - cut, y0), (x1, y0 + cut), (x1, y1 - cut),
        (x1 - cut, y1), (x0 + cut, y1), (x0, y1 - cut), (x0, y0 + cut),
    )  # fmt: skip


def _corners(path: list[Node]) -> list[Node]:
    """`path` without the nodes on the straight between their neighbours."""
    inner = [
        b
        for a, b, c in zip(path, path[1:], path[2:], strict=False)
        if (b[0] - a[0], b[1] - a[1]) != (c[0] - b[0], c[1] - b[1])
    ]
    return [path[0], *inner, path[-1]]

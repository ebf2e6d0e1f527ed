"""What a disk may hold after a loss of power, worked out from the system calls that were made before it.

The model is harsher than real file systems are. What was written to a file since its last fsync may be missing, cut
short or zeroed. Each change of a folder since that folder's last fsync may or may not have happened, in any
combination; a rename within a folder happens whole or not at all.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

Image = dict[str, bytes | None]  # path below the recorded folder, and content; None is a folder


@dataclass(slots=True)
class _File:
    durable: bytes = b""
    content: bytes = b""


@dataclass(slots=True)
class _Change:
    """A name taken out of a folder, a name put into it, or both at once."""

    removed: str | None
    added: str | None
    node: _Node | None


@dataclass(slots=True)
class _Folder:
    durable: dict[str, _Node] = field(default_factory=dict)
    content: dict[str, _Node] = field(default_factory=dict)
    changes: list[_Change] = field(default_factory=list)

    def apply(self, change: _Change) -> None:
        _apply(self.content, change)
        self.changes.append(change)


_Node = _File | _Folder


def _apply(names: dict[str, _Node], change: _Change) -> None:
    if change.removed is not None:
        names.pop(change.removed, None)
    if change.added is not None and change.node is not None:
        names[change.added] = change.node


@dataclass(frozen=True, slots=True)
class Outcome:
    """One way to lose power: which unsynced changes of folders happened, and what became of unsynced bytes."""

    happened: Callable[[], bool]
    left_of: Callable[[bytes, bytes], bytes]  # from a file's durable bytes and all its bytes


def _missing(durable: bytes, _: bytes) -> bytes:
    return durable


def _whole(_: bytes, content: bytes) -> bytes:
    return content


def _cut(durable: bytes, content: bytes) -> bytes:
    return content[: (len(durable) + len(content)) // 2]


def _zeroed(durable: bytes, content: bytes) -> bytes:
    return durable + bytes(len(content) - len(durable))


def outcomes(rng: random.Random, *, num_random: int) -> Iterator[Outcome]:
    """The pure cases, which catch the classic mistakes, and some random mixtures."""
    kinds = (_missing, _whole, _cut, _zeroed)
    for kind in kinds:
        yield Outcome(lambda: False, kind)
        yield Outcome(lambda: True, kind)
    for _ in range(num_random):
        yield Outcome(lambda: rng.random() < 0.5, lambda durable, content: rng.choice(kinds)(durable, content))


class RecordingCalls:
    """`os`, with a model of what is durable beside it. `folder` itself is taken to be durable.

    `on_change` is called after each call that changed something: a moment at which power may be lost.
    """

    def __init__(self, folder: Path, *, on_change: Callable[[], None]) -> None:
        self._folder = folder
        self._on_change = on_change
        self._top = _Folder()
        self._open: dict[int, _Node] = {}

    def image(self, outcome: Outcome) -> Image:
        """What is found below the folder if power is lost now with this outcome."""
        found: Image = {}
        _build(self._top, "", outcome, found)
        return found

    def open(self, path: Path, flags: int, mode: int = 0o777, /) -> int:
        fd = os.open(path, flags, mode)
        if flags & os.O_CREAT:
            self._parent(path).apply(_Change(None, path.name, _File()))
            self._on_change()
        self._open[fd] = self._node(path)
        return fd

    def write(self, fd: int, data: memoryview, /) -> int:
        written = os.write(fd, data)
        node = self._open[fd]
        if isinstance(node, _File):
            node.content += data[:written]
        self._on_change()
        return written

    def fsync(self, fd: int, /) -> None:
        """Durable in the model; the machine's own disk is left in peace."""
        node = self._open[fd]
        if isinstance(node, _File):
            node.durable = node.content
        else:
            node.durable = dict(node.content)
            node.changes.clear()
        self._on_change()

    def rename(self, src: Path, dst: Path, /) -> None:
        if src.parent != dst.parent:
            raise NotImplementedError("renames between folders")
        os.rename(src, dst)
        self._parent(src).apply(_Change(src.name, dst.name, self._node(src)))
        self._on_change()

    def mkdir(self, path: Path, /) -> None:
        os.mkdir(path)
        self._parent(path).apply(_Change(None, path.name, _Folder()))
        self._on_change()

    def unlink(self, path: Path, /) -> None:
        os.unlink(path)
        self._parent(path).apply(_Change(path.name, None, None))
        self._on_change()

    def rmdir(self, path: Path, /) -> None:
        os.rmdir(path)
        self._parent(path).apply(_Change(path.name, None, None))
        self._on_change()

    def _node(self, path: Path) -> _Node:
        node: _Node = self._top
        for part in path.relative_to(self._folder).parts:
            if not isinstance(node, _Folder):
                raise NotADirectoryError(path)
            node = node.content[part]
        return node

    def _parent(self, path: Path) -> _Folder:
        node = self._node(path.parent)
        if not isinstance(node, _Folder):
            raise NotADirectoryError(path.parent)
        return node


def materialise(image: Image, folder: Path) -> None:
    """Make `folder` with what is in the image."""
    folder.mkdir()
    for name, content in image.items():  # parents come first
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)


def _build(folder: _Folder, prefix: str, outcome: Outcome, found: Image) -> None:
    names = dict(folder.durable)
    for change in folder.changes:
        if outcome.happened():
            _apply(names, change)
    for name in sorted(names):
        node = names[name]
        if isinstance(node, _Folder):
            found[prefix + name] = None
            _build(node, f"{prefix}{name}/", outcome, found)
        else:
            found[prefix + name] = outcome.left_of(node.durable, node.content)

"""What a user names as a source, as frames: files, folders, patterns, videos, cameras."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"})
VIDEOS = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ts"})


@dataclass(frozen=True, slots=True)
class Frame:
    """A picture to look at: a file's path, or a video's pixels; or why there is none."""

    name: str
    content: Any = None
    error: str = ""

    @property
    def file_name(self) -> str:
        """A name for a picture made of it."""
        path = Path(self.name.replace("#", "-"))
        return f"{path.name}.jpg" if path.suffix.lower() not in PICTURES - {".gif", ".avif"} else path.name


def frames_of(sources: Iterable[str]) -> Iterator[Frame]:
    """The frames of each source in turn; a folder's files by name, those of other kinds left out."""
    for source in sources:
        if source.isdecimal() and not Path(source).exists():
            yield from _video(f"camera {source}", int(source))
            continue
        paths = (
            [Path(source)]
            if Path(source).exists()
            else [Path(one) for one in sorted(glob.glob(source, recursive=True))]
        )
        if not paths:
            yield Frame(source, error="there is no such file")
        for path in paths:
            yield from _below(path) if path.is_dir() else _file(path)


def _below(folder: Path) -> Iterator[Frame]:
    files = [one for one in sorted(folder.rglob("*")) if one.suffix.lower() in PICTURES | VIDEOS and one.is_file()]
    if not files:
        yield Frame(str(folder), error="no picture or video in this folder")
    for path in files:
        yield from _file(path)


def _file(path: Path) -> Iterator[Frame]:
    if path.suffix.lower() in VIDEOS:
        yield from _video(str(path), str(path))
    else:
        yield Frame(str(path), path)


def _video(name: str, source: str | int) -> Iterator[Frame]:
    from steadyolo.serve.pictures import video

    number = 0
    for number, picture in enumerate(video(source), start=1):
        yield Frame(f"{name}#{number}", picture)
    if not number:
        yield Frame(name, error="no frame can be read from it")

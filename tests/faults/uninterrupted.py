"""The runs that interrupted ones are compared with: each is made once in a test session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.faults.runs import Child, Prepare, differing, digests, small, steadyolo


@dataclass(frozen=True)
class Uninterrupted:
    """A run that nothing happened to."""

    run: Path
    digests: dict[str, object]
    seconds: float  # from the opening of its folder to the end


class Reference:
    """Makes small runs in folders of their own, and says how another run differs from the one nothing happened to."""

    def __init__(self, folder: Path, boards: Callable[[str], Path], models: Callable[..., Path]) -> None:
        self._folder, self._boards, self._models = folder, boards, models
        self._made = cache(self._make)

    def words(self, run: Path, *, task: str = "detect", **changes: object) -> list[str]:
        family = str(changes.pop("family", "yolov8"))
        return small(self._boards(task), self._models(task, family), run, **changes)

    def start(self, run: Path, *, task: str = "detect", prepare: tuple[Prepare, ...] = (), **changes: object) -> Child:
        return Child(self.words(run, task=task, **changes), log=run.parent / f"{run.name}.log", prepare=prepare)

    def resume(self, run: Path, *more: object, prepare: tuple[Prepare, ...] = ()) -> Child:
        return Child(["resume", run, *more], log=run.parent / f"{run.name}.resume.log", prepare=prepare)

    def uninterrupted(self, task: str = "detect", **changes: object) -> Uninterrupted:
        return self._made(task, tuple(sorted(changes.items())))

    def differing(self, run: Path, task: str = "detect", **changes: object) -> list[str]:
        """Names of what differs between `run` and the uninterrupted run that was asked for the same."""
        return differing(digests(run), self.uninterrupted(task, **changes).digests)

    def _make(self, task: str, changes: tuple[tuple[str, object], ...]) -> Uninterrupted:
        name = "-".join([task, *(f"{key}{value}" for key, value in changes)])
        run = self._folder / name
        steadyolo(*self.words(run, task=task, **dict(changes)), log=self._folder / f"{name}.log").expect(0)
        own = run / "steadyolo"
        seconds = (own / "finished.json").stat().st_mtime - (own / "spec.json").stat().st_mtime
        return Uninterrupted(run, digests(run), seconds)

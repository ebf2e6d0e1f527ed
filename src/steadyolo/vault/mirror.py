"""`RunMirror`: everything of a run folder that is no checkpoint, kept in a store under the same names."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path, PurePosixPath

from steadyolo.errors import DataLoss, UserError
from steadyolo.vault.claim import Claim
from steadyolo.vault.digested import from_text, to_text
from steadyolo.vault.disk import ensure_folder
from steadyolo.vault.files import OURS_FOLDER, replace_file
from steadyolo.vault.objects import Absent, Data, checked_key
from steadyolo.vault.remote_run import Pace, RemoteRun

logger = logging.getLogger(__name__)

INDEX = f"{OURS_FOLDER}/mirror.json"
SEGMENT_BYTES = 2**20  # logs grow at their end: only the last segment of one is sent again
WHOLE_BYTES = 256 * 2**20  # other files are one object each, as large as the stores take comfortably
_NOT_MIRRORED = (f"{OURS_FOLDER}/checkpoints/", f"{OURS_FOLDER}/lock", f"{OURS_FOLDER}/tiers.json")
_REMEDY = "look at that object; checkpoints do not depend on it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of a mirrored file, under `key`."""

    key: str
    num_bytes: int
    sha256: str


class RunMirror:
    """Sends what changed since the last time, the index last."""

    def __init__(self, run: RemoteRun, folder: Path) -> None:
        self._run = run
        self._folder = folder
        self._seen: dict[str, tuple[int, int]] = {}  # size in bytes and time of change, by path
        self._index: dict[str, list[Segment]] | None = None

    def push(self, *, claim: Claim, pace: Pace) -> int:
        """Bring the store up to date. Returns the bytes that were sent. Raises: `Transient`, `UserError`, `Fenced`.

        A file that cannot be read, or has a name that no store can keep, is left out and keeps none of the others back.
        """
        if self._index is None:
            self._index = _index_of(self._run)
        self._run.check(claim)
        sent_bytes, changed = 0, False
        for path, stamp in self._changed():
            known = {segment.key: segment for segment in self._index.get(path, [])}
            segments: list[Segment] = []
            self._run.check(claim)  # these objects, unlike a checkpoint's, have the same names for a successor
            try:
                for segment, data in _segments(self._folder, path):
                    if known.get(segment.key) != segment:
                        pace(len(data))
                        self._run.store.put(f"{self._run.name}/{segment.key}", data)
                        sent_bytes += len(data)
                    segments.append(segment)
            except OSError as error:
                logger.info("%s is not mirrored: %s", path, error)
                continue
            self._index[path] = segments
            self._seen[path] = stamp
            changed = True
        if changed:
            self._run.check(claim)
            index = {path: [asdict(segment) for segment in segments] for path, segments in self._index.items()}
            self._run.store.put(f"{self._run.name}/{INDEX}", to_text({"version": 1, "files": index}))
        return sent_bytes

    def _changed(self) -> Iterator[tuple[str, tuple[int, int]]]:
        for path in sorted(self._folder.rglob("*")):
            relative = path.relative_to(self._folder).as_posix()
            if relative.startswith(_NOT_MIRRORED) or path.name.endswith(".partial") or path.is_symlink():
                continue
            try:
                checked_key(relative)
                if not path.is_file():
                    continue
                stat = path.stat()
            except (OSError, UserError):  # deleted while we look; or no name that every store can keep
                continue
            if self._seen.get(relative) != (stat.st_size, stat.st_mtime_ns):
                yield relative, (stat.st_size, stat.st_mtime_ns)


def restore_mirror(run: RemoteRun, into: Path) -> tuple[int, list[str]]:
    """Put the mirrored files of `run` under `into`. Returns how many there are, and which could not be restored.

    Files that are there are left alone. Raises: `Transient`, `UserError`.
    """
    problems: list[str] = []
    index = _index_of(run)
    for path, segments in index.items():
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or path.startswith(_NOT_MIRRORED):
            problems.append(f"{path}: not a name that a run folder has")
            continue
        target = into / path
        if target.exists():  # this folder went on by itself: what it has is newer, or the same
            continue
        try:
            data = b"".join(_fetched(run, segment) for segment in segments)
        except DataLoss as error:
            problems.append(f"{path}: {error.message}")
            continue
        ensure_folder(target.parent)
        replace_file(target, data)
    return len(index), problems


def read_mirrored(run: RemoteRun, path: str) -> bytes:
    """One mirrored file of `run`, verified. Raises: UserError where it has none; DataLoss; `Transient`."""
    segments = _index_of(run).get(path)
    if segments is None:
        raise UserError(f"{run.url} holds no {path}", remedy="wait until it was scored, or choose another run")
    return b"".join(bytes(_fetched(run, segment)) for segment in segments)


def verify_mirror(run: RemoteRun) -> tuple[int, dict[str, str]]:
    """Read every mirrored file of `run`. Returns the bytes that are good, and by path what is wrong with the others."""
    num_bytes, problems = 0, {}
    for path, segments in _index_of(run).items():
        try:
            num_bytes += sum(len(_fetched(run, segment)) for segment in segments)
        except DataLoss as error:
            problems[path] = error.message
    return num_bytes, problems


def _fetched(run: RemoteRun, segment: Segment) -> Data:
    try:
        data = run.store.get(f"{run.name}/{segment.key}").data
    except Absent:
        raise DataLoss(f"{segment.key} in {run.url} is not there", remedy=_REMEDY) from None
    # A push that died before its index left newer objects. What only grows begins with what the index knows.
    found = hashlib.sha256(data[: segment.num_bytes]).hexdigest()
    if found != segment.sha256:
        raise DataLoss(f"{segment.key} in {run.url}: expected digest {segment.sha256}, found {found}", remedy=_REMEDY)
    return data[: segment.num_bytes]


def _index_of(run: RemoteRun) -> dict[str, list[Segment]]:
    """What is mirrored. An index that is damaged or not there stands for nothing: the next push writes all again."""
    try:
        raw = from_text(run.store.get(f"{run.name}/{INDEX}").data, what=f"{INDEX} of {run.url}", remedy=_REMEDY)
    except (Absent, DataLoss):
        return {}
    return {path: [Segment(**segment) for segment in segments] for path, segments in raw["files"].items()}


def _segments(folder: Path, path: str) -> Iterator[tuple[Segment, bytes]]:
    """The file as it is now, in the pieces that it is stored in, one at a time. Raises: `OSError`."""
    name = PurePosixPath(path).name
    size_bytes = SEGMENT_BYTES if name.endswith(".jsonl") or "tfevents" in name else WHOLE_BYTES
    with (folder / path).open("rb") as file:
        is_one = size_bytes == WHOLE_BYTES and os.fstat(file.fileno()).st_size <= WHOLE_BYTES
        for number in count():
            piece = file.read(size_bytes)
            if number and not piece:
                return
            key = path if is_one else f"{path}.part-{number:05d}"
            yield Segment(key=key, num_bytes=len(piece), sha256=hashlib.sha256(piece).hexdigest()), piece
            if is_one:  # what is appended at this moment is sent the next time
                return

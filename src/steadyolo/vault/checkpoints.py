"""`Checkpoints`: a run's checkpoints in one folder, each of them whole, durable and verified, or not there."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePath

from steadyolo.errors import DataLoss, Transient, UserError
from steadyolo.state.run_state import RunState
from steadyolo.state.snapshot import Snapshot
from steadyolo.vault.disk import LOCAL_DISK, Disk, ensure_folder
from steadyolo.vault.manifest import FileEntry, Manifest, steadyolo_version
from steadyolo.vault.tensors import decode, encode

MANIFEST = "manifest.json"
STATE = "state.json"
TENSORS = ".safetensors"
RUN_FOLDER = "run folder"  # the first tier

_NAME = re.compile(r"step-\d{8}\.\d{8}")
_LEFTOVER = re.compile(_NAME.pattern + r"\.(partial|deleted|fetching)-(?P<writer_id>.+)")
_COMPANION = re.compile(r"\w[\w.-]*")
_USE_OLDER = "use an older checkpoint; `resume` does so by itself"


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A save that is acknowledged. `num_bytes` leaves the manifest out; `seconds` is what the commit took."""

    name: str
    num_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A checkpoint that must not be used, and why; in the run folder, or in a tier beyond it."""

    name: str
    why: str
    tier: str = RUN_FOLDER


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The newest checkpoint that is good, if any, and the newer ones that are not, newest first."""

    snapshot: Snapshot | None
    rejected: tuple[Rejected, ...]


def is_committed(folder: Path) -> bool:
    """Whether `folder` counts as a checkpoint: it has its final name and its manifest, which are given last.

    Whether its bytes are still those that were written is another question, for `Checkpoints.verify`.
    """
    return _NAME.fullmatch(folder.name) is not None and (folder / MANIFEST).is_file()


def best_suffix_of(best_tick: int) -> str:
    """How the name of the checkpoint ends that holds the weights of a ledger's `best_tick`."""
    return f".{best_tick:08d}"


class Checkpoints:
    """The checkpoints under `root`, of which one process at a time is the writer. Readers need no lock.

    `writer_id` (letters, digits, `-` and `_`) tells this writer's unfinished work from that of others.
    """

    def __init__(
        self,
        root: Path,
        *,
        disk: Disk = LOCAL_DISK,
        writer_id: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not re.fullmatch(r"[\w-]+", writer_id):
            raise UserError(f"writer_id is {writer_id!r}", remedy="use letters, digits, - and _")
        self.root = root
        self._disk = disk
        self._writer_id = writer_id
        self._clock = clock

    def commit(self, snapshot: Snapshot, *, parent: str | None) -> Committed:
        """Keep `snapshot`. When this returns the save is acknowledged: whole, durable, and found by every reader.

        A name that is committed already is left alone if it verifies, and set aside first if it does not.
        Raises: `Transient` when the disk does not keep it; nothing counts then that did not count before.
        """
        started = self._clock()
        folder = self._folder(snapshot.name)
        with self._keeping(f"checkpoint {snapshot.name} was not saved"):
            manifest = self._kept_already(snapshot.name)
            if manifest is None:
                manifest = self._write(snapshot, folder, parent=parent)
        return Committed(name=snapshot.name, num_bytes=manifest.num_bytes, seconds=self._clock() - started)

    def committed(self) -> list[str]:
        """Names of the checkpoints that count, oldest first."""
        return [name for name in self.names() if is_committed(self.root / name)]

    def names(self) -> list[str]:
        """Everything under a final name, whether or not it counts, oldest first."""
        return [path.name for path in self._entries() if _NAME.fullmatch(path.name)]

    def best_known_to(self, name: str) -> str | None:
        """How the best checkpoint is called as far as `name` knows, None where nothing was scored.

        It need not be here. Nothing is verified: what this says spares a checkpoint from retention and no more.
        """
        try:
            ledger = json.loads((self._folder(name) / STATE).read_bytes())["state"]["ledger"]
            suffix = best_suffix_of(int(ledger["best_tick"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not ledger["best_tick"]:
            return None
        return next((found for found in self.committed() if found.endswith(suffix)), None)

    def writer_of(self, name: str) -> str | None:
        """Who committed checkpoint `name`; None where its manifest cannot be read."""
        try:
            return Manifest.from_json((self._folder(name) / MANIFEST).read_bytes()).writer_id
        except (OSError, DataLoss, UserError):
            return None

    def fetching(self, name: str, token: int) -> Path:
        """Where a copy of `name` is put together before it is adopted. What is there already is kept."""
        ensure_folder(self.root, disk=self._disk)
        return self._folder(name).with_name(f"{name}.fetching-{token}")

    def adopt(self, name: str, staged: Path, manifest: bytes) -> None:
        """Let the files in `staged`, which are durable, count as checkpoint `name`. A bad one there is set aside.

        Raises: `Transient` when the disk does not keep it.
        """
        folder = self._folder(name)
        with self._keeping(f"checkpoint {name} was not restored"):
            if folder.exists():
                self.set_aside(name)
            self._disk.remove(staged / MANIFEST)
            self._disk.write(staged / MANIFEST, [manifest])
            self._disk.sync_folder(staged)
            self._disk.rename(staged, folder)
            self._disk.sync_folder(self.root)

    def verify(self, name: str) -> None:
        """Read all of checkpoint `name` and compare it with what was written.

        Raises: `DataLoss` with the file, what was expected and what was found. `UserError` for a newer format.
        """
        self._verified(name)

    def load(self, name: str) -> Snapshot:
        """Checkpoint `name`, verified first.

        Raises: as `verify` does, and `UserError` for the run state of another version.
        """
        folder = self._folder(name)
        file_names = [entry.name for entry in self._verified(name).files]
        state = json.loads((folder / STATE).read_bytes())
        return Snapshot(
            name=name,
            state=RunState.from_dict(state["state"]),
            tensors={PurePath(file).stem: decode(folder / file) for file in file_names if file.endswith(TENSORS)},
            made_from=state["made_from"],
            files={
                file: (folder / file).read_bytes()
                for file in file_names
                if file != STATE and not file.endswith(TENSORS)
            },
        )

    def newest_verified(self) -> Found:
        """The newest checkpoint that can be used, going back past those that cannot. Changes nothing on the disk."""
        rejected: list[Rejected] = []
        for name in reversed(self.names()):
            try:
                return Found(snapshot=self.load(name), rejected=tuple(rejected))
            except (DataLoss, UserError) as error:
                rejected.append(Rejected(name=name, why=error.message))
        return Found(snapshot=None, rejected=tuple(rejected))

    def set_aside(self, name: str) -> str:
        """Rename a checkpoint that must not be used: it counts no more, and nothing is lost. Returns its new name."""
        folder = self._folder(name)
        aside = next(path for n in count(1) if not (path := self.root / f"{name}.bad-{n}").exists())
        with self._keeping(f"checkpoint {name} could not be set aside"):
            self._disk.rename(folder, aside)
            self._disk.sync_folder(self.root)
        return aside.name

    def sweep(self) -> list[str]:
        """Remove what earlier writers left unfinished, and return the names of what was removed.

        Only the run's one writer may call this, with no commit under way. What cannot be removed stays, uncounted.
        """
        swept: list[str] = []
        for path in self._entries():
            if _LEFTOVER.fullmatch(path.name):
                with suppress(OSError):
                    self._disk.remove(path)
                    swept.append(path.name)
        return swept

    def delete(self, name: str) -> None:
        """Remove checkpoint `name`, which first stops counting. Absent is not an error."""
        folder = self._folder(name)
        doomed = self.root / f"{name}.deleted-{self._writer_id}"
        with self._keeping(f"checkpoint {name} could not be deleted"):
            if folder.exists():
                self._disk.remove(doomed)
                self._disk.rename(folder, doomed)
                # Without this, a loss of power could leave the files gone and the folder under its old name.
                self._disk.sync_folder(self.root)
            self._disk.remove(doomed)

    # --- writing ---

    def _write(self, snapshot: Snapshot, folder: Path, *, parent: str | None) -> Manifest:
        """Stage all files, then the manifest, then give the folder its name."""
        staged = self.root / f"{folder.name}.partial-{self._writer_id}"
        try:
            ensure_folder(self.root, disk=self._disk)
            self._disk.remove(staged)
            self._disk.make_folder(staged)
            manifest = Manifest(
                files=tuple(self._write_file(staged / name, chunks) for name, chunks in _contents(snapshot)),
                parent=parent,
                writer_id=self._writer_id,
                step=snapshot.state.step,
                steadyolo_version=steadyolo_version(),
            )
            self._disk.write(staged / MANIFEST, [manifest.to_json()])
            self._disk.sync_folder(staged)
            self._disk.rename(staged, folder)
            self._disk.sync_folder(self.root)
        except BaseException:
            self._withdraw(staged, folder)
            raise
        return manifest

    def _write_file(self, path: Path, chunks: Iterable[memoryview | bytes]) -> FileEntry:
        digest = hashlib.sha256()
        num_bytes = 0

        def watched() -> Iterator[memoryview | bytes]:
            nonlocal num_bytes
            for chunk in chunks:
                digest.update(chunk)
                num_bytes += len(chunk)
                yield chunk

        self._disk.write(path, watched())
        return FileEntry(name=path.name, num_bytes=num_bytes, sha256=digest.hexdigest())

    def _withdraw(self, staged: Path, folder: Path) -> None:
        """Leave nothing of a failed commit, as far as the disk lets us. What stays is whole, or swept at a later start.

        The folder was not there before, so if it is now, then its rename happened and is not known to be durable.
        """
        with suppress(OSError):
            if folder.exists():
                self._disk.rename(folder, staged)
        with suppress(OSError):
            self._disk.remove(staged)

    def _kept_already(self, name: str) -> Manifest | None:
        """The manifest of `name` if that is committed and good. A bad one is set aside."""
        if not (self.root / name).exists():
            return None
        try:
            manifest = self._verified(name)
        except DataLoss:
            self.set_aside(name)
            return None
        self._disk.sync_folder(self.root)  # its writer may have been killed just before it did so
        return manifest

    # --- reading ---

    def _verified(self, name: str) -> Manifest:
        folder = self._folder(name)
        try:
            if not is_committed(folder):
                raise DataLoss(f"checkpoint {name}: {MANIFEST}: expected a file, found none", remedy=_USE_OLDER)
            manifest = Manifest.from_json((folder / MANIFEST).read_bytes())
            for entry in manifest.files:
                _verify_file(folder / entry.name, entry)
        except OSError as error:
            raise DataLoss(f"checkpoint {name} cannot be read: {error}", remedy=_USE_OLDER) from error
        return manifest

    def _folder(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise UserError(f"{name!r} is not a checkpoint's name", remedy="use a name such as step-00001234.00005678")
        return self.root / name

    def _entries(self) -> list[Path]:
        return sorted(self.root.iterdir()) if self.root.is_dir() else []

    @contextmanager
    def _keeping(self, what_failed: str) -> Iterator[None]:
        """Sort what a disk says by what the caller can do about it."""
        try:
            yield
        except OSError as error:
            raise Transient(
                f"{what_failed}: {error}",
                remedy="make room on the disk or repair it; what was committed before is untouched, and the next save "
                "tries again",
            ) from error


def _contents(snapshot: Snapshot) -> Iterator[tuple[str, Iterable[memoryview | bytes]]]:
    """Name and bytes of every file of a checkpoint except the manifest."""
    for name in snapshot.files:
        if name in {STATE, MANIFEST} or name.endswith(TENSORS) or not _COMPANION.fullmatch(name):
            raise UserError(
                f"companion file {name!r} of checkpoint {snapshot.name}",
                remedy=f"use a file name of letters, digits, _ . and -, other than {STATE}, {MANIFEST} and *{TENSORS}",
            )
    for group, tensors in snapshot.tensors.items():
        yield group + TENSORS, encode(tensors)
    state = {"state": snapshot.state.to_dict(), "made_from": dict(snapshot.made_from)}
    yield STATE, [json.dumps(state, indent=1).encode()]
    for name, data in snapshot.files.items():
        yield name, [data]


def _verify_file(path: Path, entry: FileEntry) -> None:
    if not path.is_file():
        raise DataLoss(f"{path}: expected {entry.num_bytes} bytes, found no file", remedy=_USE_OLDER)
    found_bytes = path.stat().st_size
    if found_bytes != entry.num_bytes:
        raise DataLoss(f"{path}: expected {entry.num_bytes} bytes, found {found_bytes}", remedy=_USE_OLDER)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != entry.sha256:
        raise DataLoss(f"{path}: expected SHA-256 {entry.sha256}, found {found}", remedy=_USE_OLDER)

"""`RemoteRun`: a run's copies in one store."""

from __future__ import annotations

import errno
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from steadyolo.errors import DataLoss, Transient, UserError
from steadyolo.vault.checkpoints import MANIFEST
from steadyolo.vault.claim import Claim
from steadyolo.vault.copy import PART_BYTES, Copy, Part, StoredManifest, cut
from steadyolo.vault.crew import Crew
from steadyolo.vault.files import OURS_FOLDER
from steadyolo.vault.manifest import Manifest
from steadyolo.vault.objects import Absent, Data, Listed, ObjectStore

WRITER = f"{OURS_FOLDER}/writer.json"
CHECKPOINTS = f"{OURS_FOLDER}/checkpoints"
_NUM_PARALLEL = 4  # uploads and reads under way at once
_SYNC_EVERY = 8  # parts
_USE_ANOTHER = "use another copy; `resume` does so by itself"

Pace = Callable[[int], None]  # called with the size of each object before it is sent


def _at_once(num_bytes: int) -> None:
    """The pace of a transfer that nothing holds back."""


class Fenced(UserError):
    """Another process has taken the run over. This one must not write to its copies any more."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A claim as it stands in the store, with the tag that replacing it takes."""

    claim: Claim
    tag: str


class RemoteRun:
    """The copies of run `name` in `store`: what is written under `<name>/`, in the layout of a run folder.

    Checkpoints are folders of immutable objects, their manifest put last. Reading needs no claim.
    """

    def __init__(self, store: ObjectStore, name: str) -> None:
        self.store = store
        self.name = name
        self.url = f"{store.url.rstrip('/')}/{name}"

    # --- who writes ---

    def owner(self) -> Owner | None:
        """Who holds the run, None where it was never claimed. Raises: as `ObjectStore.get`; `Transient` if damaged."""
        try:
            found = self.store.get(self._key(WRITER))
        except Absent:
            return None
        try:
            return Owner(claim=Claim.from_json(found.data, where=self.url), tag=found.tag)
        except DataLoss as error:  # on its way, more often than not: the object itself is never changed in place
            raise Transient(error.message, remedy=error.remedy) from error

    def take(self, claim: Claim, *, over: Owner | None) -> None:
        """Make `claim` the one that holds, in the place of `over`. Raises: `Taken` when somebody was faster."""
        self.store.put_if(self._key(WRITER), claim.to_json(), tag=over.tag if over else None)

    def check(self, claim: Claim) -> None:
        """Raise `Fenced` when `claim` holds no more."""
        owner = self.owner()
        if owner is None:
            raise UserError(
                f"{self.url} was claimed and is not there any more",
                remedy="look whether its disk is mounted, or who emptied it",
            )
        if owner.claim.writer_id != claim.writer_id:
            other = owner.claim
            raise Fenced(
                f"the run {self.url} was taken over by {other.writer_id} on {other.host} at {other.since}",
                remedy="let that process go on; what is saved here is kept, and allow=takeover takes the run back",
            )

    # --- which copies there are ---

    def copies(self) -> list[Copy]:
        """The copies that count: those with a manifest. Oldest first."""
        ends = f"/{MANIFEST}"
        labels = (
            listed.key.removesuffix(ends).rpartition("/")[2]
            for listed in self._list(f"{CHECKPOINTS}/")
            if listed.key.endswith(ends)
        )
        return sorted(copy for label in labels if (copy := Copy.parse(label)))

    def orphans(self) -> list[str]:
        """Keys under copies that do not count: uploads that were cut short, and deletions."""
        counted = {copy.label for copy in self.copies()}
        return [
            listed.key
            for listed in self._list(f"{CHECKPOINTS}/")
            if listed.key.removeprefix(self._key(f"{CHECKPOINTS}/")).partition("/")[0] not in counted
        ]

    # --- writing ---

    def upload(self, folder: Path, copy: Copy, *, claim: Claim, pace: Pace = _at_once) -> int:
        """Keep the committed checkpoint in `folder` as `copy`. Returns the bytes that had to be sent.

        When this returns the copy counts and every byte of it is confirmed. Parts that are there from an attempt before
        are not sent again. Raises: `Transient`, `UserError`; `Fenced`; `DataLoss` when the folder's files are not what
        was committed, or are of a format that this steadyolo does not know. The copy does not count then.
        """
        text = (folder / MANIFEST).read_bytes()
        manifest = _own_manifest(text, folder)
        self.check(claim)  # nothing at all is sent to a place that is gone or somebody else's
        there = {listed.key: listed for listed in self._list(f"{CHECKPOINTS}/{copy.label}/")}
        sent = _Sent()
        with Crew(_NUM_PARALLEL, name="steadyolo-send") as crew:
            parts = list(self._send_files(folder, manifest, copy, crew, there, sent, pace))
        stored = StoredManifest(label=copy.label, checkpoint=text.decode(), parts=tuple(parts))
        self._check_parts(copy, stored)
        self.check(claim)
        self.store.put(self._key_of(copy, MANIFEST), stored.to_json())
        return sent.num_bytes

    def delete(self, copy: Copy) -> None:
        """Remove `copy`, which stops counting first. Absent is not an error."""
        keys = [listed.key for listed in self._list(f"{CHECKPOINTS}/{copy.label}/")]
        self.store.delete(self._key_of(copy, MANIFEST))
        for key in keys:
            self.store.delete(key)

    def _check_parts(self, copy: Copy, stored: StoredManifest) -> None:
        """Raise `Transient` unless every part is there at this moment: somebody may have cleaned up meanwhile."""
        found = {listed.key: listed.num_bytes for listed in self._list(f"{CHECKPOINTS}/{copy.label}/")}
        for part in stored.parts:
            if found.get(self._key_of(copy, part.key)) != part.num_bytes:
                raise Transient(
                    f"{part.key} of {copy.label} went missing in {self.url}", remedy="wait: it is sent again"
                )

    def _send_files(
        self,
        folder: Path,
        manifest: Manifest,
        copy: Copy,
        crew: Crew,
        there: dict[str, Listed],
        sent: _Sent,
        pace: Pace,
    ) -> Iterator[Part]:
        under_way: set[Future[None]] = set()
        for entry in manifest.files:
            whole = hashlib.sha256()
            for name, start, num_bytes in cut(entry.name, entry.num_bytes):
                data = _read(folder / entry.name, start, num_bytes)
                whole.update(data)
                digest = whole if num_bytes == entry.num_bytes else hashlib.sha256(data)
                part = Part(key=name, file=entry.name, start=start, num_bytes=num_bytes, sha256=digest.hexdigest())
                key = self._key_of(copy, name)
                under_way.add(crew.submit(partial(self._send, key, data, there.get(key), sent, pace)))
                under_way = _at_most(under_way, _NUM_PARALLEL)
                yield part
            if whole.hexdigest() != entry.sha256:
                raise DataLoss(f"{folder / entry.name} is not what was committed", remedy="look at that disk")
        _at_most(under_way, 0)

    def _send(self, key: str, data: bytes, found: Listed | None, sent: _Sent, pace: Pace) -> None:
        if found is not None and self.store.holds(found, data):
            return
        pace(len(data))
        self.store.put(key, data)
        sent.num_bytes += len(data)

    # --- reading ---

    def manifest(self, copy: Copy) -> StoredManifest:
        """What `copy` consists of. Raises: `DataLoss` when it is damaged or gone, `UserError` for another version."""
        where = f"{self.url}/{copy.label}"
        try:
            stored = StoredManifest.from_json(self.store.get(self._key_of(copy, MANIFEST)).data, where=where)
        except Absent:
            raise DataLoss(f"manifest.json of {where} is not there", remedy=_USE_ANOTHER) from None
        if stored.label != copy.label:
            raise DataLoss(f"manifest.json of {where} belongs to another checkpoint", remedy=_USE_ANOTHER)
        return stored

    def verify(self, copy: Copy, *, only: Callable[[Part], bool] = lambda part: True) -> int:
        """Read the parts of `copy` that `only` chooses and compare them with what was sent. Returns their bytes.

        Raises: `DataLoss` with the object, what was expected and what was found.
        """
        chosen = [part for part in self.manifest(copy).parts if only(part)]
        with Crew(_NUM_PARALLEL, name="steadyolo-read") as crew:
            for _ in crew.map(lambda part: deque(self._read_part(copy, part), maxlen=0), chosen):
                pass
        return sum(part.num_bytes for part in chosen)

    def fetch(self, copy: Copy, into: Path, *, num_parallel: int = 8, progress: Pace = _at_once) -> bytes:
        """Put the files of `copy` into `into`, and return the text of their manifest, which is not among them.

        Parts that are there from an attempt before are not read again. When this returns, each part is verified.
        """
        stored = self.manifest(copy)
        into.mkdir(parents=True, exist_ok=True)
        files = {entry.name: _opened(into / entry.name, entry.num_bytes) for entry in stored.manifest.files}
        try:
            with Crew(num_parallel, name="steadyolo-fetch") as crew:
                for num_bytes in crew.map(lambda part: self._fetch_part(copy, part, files[part.file]), stored.parts):
                    progress(num_bytes)
            for fd in files.values():
                os.fsync(fd)
        finally:
            for fd in files.values():
                os.close(fd)
        return stored.checkpoint.encode()

    def read_file(self, copy: Copy, name: str) -> bytes:
        """One file of `copy`, verified. Raises: as `verify`."""
        chosen = (part for part in self.manifest(copy).parts if part.file == name)
        return b"".join(bytes(piece) for part in chosen for piece in self._read_part(copy, part))

    def _fetch_part(self, copy: Copy, part: Part, fd: int) -> int:
        is_there = _holds_data(fd, part.start, part.num_bytes) and (
            hashlib.sha256(os.pread(fd, part.num_bytes, part.start)).hexdigest() == part.sha256
        )
        if not is_there:
            start = part.start
            for piece in self._read_part(copy, part):
                _write_whole(fd, memoryview(piece), start)
                start += len(piece)
            if part.start // PART_BYTES % _SYNC_EVERY == 0:
                os.fdatasync(fd)  # the disk writes while others fetch, instead of all of it at the end
        return part.num_bytes

    def _read_part(self, copy: Copy, part: Part) -> Iterator[Data]:
        """The part in pieces. Raises: `DataLoss`, after the last or before one too many, if it is not what was sent."""
        key = self._key_of(copy, part.key)
        digest, num_bytes = hashlib.sha256(), 0
        try:
            for piece in self.store.stream(key):
                digest.update(piece)
                num_bytes += len(piece)
                if num_bytes > part.num_bytes:
                    break
                yield piece
        except Absent:
            raise DataLoss(f"{key} in {self.store.url} is not there", remedy=_USE_ANOTHER) from None
        if num_bytes != part.num_bytes or digest.hexdigest() != part.sha256:
            raise DataLoss(
                f"{key} in {self.store.url}: expected {part.num_bytes} bytes with digest {part.sha256}, found "
                f"{'more' if num_bytes > part.num_bytes else f'{num_bytes} bytes'} with digest {digest.hexdigest()}",
                remedy=_USE_ANOTHER,
            )

    def _list(self, folder: str) -> list[Listed]:
        return self.store.list(self._key(folder))

    def _key(self, path: str) -> str:
        return f"{self.name}/{path}"

    def _key_of(self, copy: Copy, name: str) -> str:
        return self._key(f"{CHECKPOINTS}/{copy.label}/{name}")


def runs_in(store: ObjectStore) -> list[str]:
    """Names of the runs that are kept in `store`."""
    ends = f"/{WRITER}"
    return sorted(listed.key.removesuffix(ends) for listed in store.list("") if listed.key.endswith(ends))


class _Sent:
    """Counts what went over the network."""

    def __init__(self) -> None:
        self.num_bytes = 0


def _at_most(under_way: set[Future[None]], number: int) -> set[Future[None]]:
    """Wait until `number` are left, and raise what one of the others raised."""
    while len(under_way) > number:
        done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
    return under_way


def _own_manifest(text: bytes, folder: Path) -> Manifest:
    """The manifest of a checkpoint of ours. Raises: `DataLoss`, whatever is wrong: trying again cannot help."""
    try:
        return Manifest.from_json(text)
    except UserError as error:
        raise DataLoss(f"{folder} cannot be copied: {error.message}", remedy=error.remedy) from error


def _read(path: Path, start: int, num_bytes: int) -> bytes:
    """A stretch of a file. Raises: `DataLoss` when the file ends before it does."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(num_bytes)
    except OSError as error:
        raise DataLoss(f"{path} cannot be read: {error}", remedy="look at that disk") from error
    if len(data) != num_bytes:
        raise DataLoss(f"{path} ends before byte {start + num_bytes}", remedy="look at that disk")
    return data


def _opened(path: Path, num_bytes: int) -> int:
    """The file, created where it is not there, of exactly this size; what it holds already stays."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    os.ftruncate(fd, num_bytes)
    return fd


def _holds_data(fd: int, start: int, num_bytes: int) -> bool:
    """Whether that stretch of a file may hold something. False for a hole, which would take long to read."""
    try:
        return os.lseek(fd, start, os.SEEK_DATA) < start + num_bytes
    except OSError as error:
        return error.errno != errno.ENXIO  # nothing but a hole from there on


def _write_whole(fd: int, data: memoryview, start: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], start + done)

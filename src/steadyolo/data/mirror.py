"""`Mirror`: brings one data set from a store into a folder of the cache, and keeps it what the store holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from steadyolo.data.arrivals import Arrivals
from steadyolo.data.cache import CacheEntry, make_room
from steadyolo.data.index import Index, IndexFile
from steadyolo.data.keys import files_of
from steadyolo.data.survey import Survey, survey
from steadyolo.data.transfer import PAUSES_S, Transfer
from steadyolo.errors import Transient, UserError
from steadyolo.vault.disk import LOCAL_DISK, Disk
from steadyolo.vault.objects import Listed, ObjectStore

_REPAIRED = (".jpg", ".jpeg")  # Ultralytics writes such an image anew where its end is missing
_BLOCK_BYTES = 4096
_NUM_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the fetching is; `is_waiting` for another process that fetches the same data set."""

    num_files: int = 0
    num_done: int = 0
    num_bytes: int = 0
    done_bytes: int = 0
    is_waiting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirrored:
    """The keys that a mirror holds now, how many were fetched, and what the user has to know about it."""

    keys: frozenset[str]
    num_fetched: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """The objects of `store` as files of `entry`, whose lock `work` is held meanwhile."""

    store: ObjectStore
    entry: CacheEntry
    check: Callable[[Iterable[str]], object] = lambda _: None  # refuses keys before anything is fetched
    on_progress: Callable[[Progress], None] = lambda _: None  # called often; what it raises ends the fetching
    budget_bytes: int | None = None
    num_parallel: int = 16
    disk: Disk = LOCAL_DISK
    now_s: Callable[[], float] = time.time
    pauses_s: Sequence[float] = PAUSES_S

    def update(self, *, reread: bool = False) -> Mirrored:
        """Make the files what the store lists, fetching only what is missing. Where nothing is, no file is even read.

        A file that was changed here is fetched again. Where that cannot be done, because another run uses the mirror or
        the store does not answer, an image that Ultralytics may have repaired stays as it is, with a warning; anything
        else is refused. Files that never were in the store stay, with a warning. With `reread` every file is read.
        Raises: Transient when the store does not answer and there is no complete mirror; UserError for a data set that
        cannot be mirrored, does not fit, or changed in the store while another run uses the mirror.
        """
        index = IndexFile(self.entry.folder, disk=self.disk).read()
        found = survey(self.entry.files, index.copies, reread=reread)
        try:
            listed = self._listed()
        except Transient as error:
            return self._without_store(index, found, error)
        self.check(listed)
        warnings = _foreign(found, listed)
        fetch = [new for new in listed.values() if not _holds(found, new)]
        if fetch or not index.complete or index.copies.keys() - listed.keys():
            if self.entry.use.take():
                warnings += self._change(listed, index, found, fetch)
            elif index.complete and _is_index_of(index, listed) and _may_stay(found):
                return Mirrored(keys=frozenset(listed), warnings=(*warnings, _altered(found)))
            else:
                raise UserError(
                    f"{self.store.url} is not what it was, and its copy here is in use by another run",
                    remedy="wait for that run's end, or give this one a cache of its own: data.cache=FOLDER",
                )
        elif found.sound != index.copies:  # times of change only
            IndexFile(self.entry.folder, disk=self.disk).close(found.sound.values())
        self.entry.stamp("confirmed", self.now_s())
        return Mirrored(keys=frozenset(listed), num_fetched=len(fetch), warnings=warnings)

    def _listed(self) -> dict[str, Listed]:
        for pause_s in self.pauses_s:
            try:
                return self._listed_once()
            except Transient:
                time.sleep(pause_s)
        return self._listed_once()

    def _listed_once(self) -> dict[str, Listed]:
        listed = files_of(self.store.list(""), self.store.url)
        if not listed:
            raise UserError(
                f"{self.store.url} holds no files", remedy="check the URL: it names the folder of the data set"
            )
        return listed

    def _without_store(self, index: Index, found: Survey, error: Transient) -> Mirrored:
        """What is here, if that is whole."""
        if not index.complete or found.lost or not _may_stay(found):
            raise Transient(
                f"{error.message}, and there is no complete copy of the data set here",
                remedy="wait until the store answers, then start again: what was fetched stays",
            ) from error
        self.check(index.copies)
        age_h = max(0.0, self.now_s() - self.entry.stamped_at_s("confirmed")) / 3600
        stale = f"{error.message}; using the copy here, which was up to date {age_h:.1f} h ago"
        altered = (_altered(found),) if found.altered else ()
        return Mirrored(keys=frozenset(index.copies), warnings=(stale, *_foreign(found, index.copies), *altered))

    def _change(
        self, listed: Mapping[str, Listed], index: Index, found: Survey, fetch: Sequence[Listed]
    ) -> tuple[str, ...]:
        """Fetch and remove what it takes; `entry.use` is held. Returns warnings."""
        evicted = make_room(
            self.entry,
            wanted_bytes=_taken_bytes(listed.values()),
            to_write_bytes=_taken_bytes(fetch),
            budget_bytes=self.budget_bytes,
        )
        num_bytes = sum(new.num_bytes for new in fetch)
        arrivals = Arrivals(self.entry, disk=self.disk)
        arrivals.begin({**index.copies, **found.sound}, remove=index.copies.keys() - listed.keys())
        Transfer(
            self.store,
            write=arrivals.write,
            keep=arrivals.keep,
            num_parallel=self.num_parallel,
            pauses_s=self.pauses_s,
        ).run(
            fetch,
            on_progress=lambda num_done, done_bytes: self.on_progress(
                Progress(num_files=len(fetch), num_done=num_done, num_bytes=num_bytes, done_bytes=done_bytes)
            ),
        )
        again = self._listed()
        if changed := [new.key for new in fetch if again.get(new.key) != new]:
            raise Transient(
                f"{_named(changed)} changed in {self.store.url} while the data set was being fetched",
                remedy="start again when nobody writes to the data set: what was fetched stays",
            )
        arrivals.end()
        return tuple(f"removed from the data cache to make room: {name}" for name in evicted)


def _holds(found: Survey, new: Listed) -> bool:
    copy = found.sound.get(new.key)
    return copy is not None and (copy.tag, copy.num_bytes) == (new.tag, new.num_bytes)


def _is_index_of(index: Index, listed: Mapping[str, Listed]) -> bool:
    return {key: copy.tag for key, copy in index.copies.items()} == {key: new.tag for key, new in listed.items()}


def _may_stay(found: Survey) -> bool:
    """Whether all that is wrong with a mirror are images that Ultralytics may have repaired."""
    return not found.lost and all(key.lower().endswith(_REPAIRED) for key in found.altered)


def _altered(found: Survey) -> str:
    return f"rewritten since they were fetched, as Ultralytics does with broken images: {_named(found.altered)}"


def _foreign(found: Survey, known: Iterable[str]) -> tuple[str, ...]:
    foreign = set(found.foreign) - set(known)
    return (f"not in the store, but beside what was fetched: {_named(foreign)}",) if foreign else ()


def _named(keys: Iterable[str]) -> str:
    first, *rest = (keys := sorted(keys))
    more = f" and {len(keys) - _NUM_NAMED} more" if len(keys) > _NUM_NAMED else ""
    return ", ".join([first, *rest[: _NUM_NAMED - 1]]) + more


def _taken_bytes(listed: Iterable[Listed]) -> int:
    """The room that files take on a disk, which gives it in blocks."""
    return sum(-(-new.num_bytes // _BLOCK_BYTES) * _BLOCK_BYTES for new in listed)

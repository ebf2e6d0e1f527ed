"""`fetch_dataset`: what `data=s3://bucket/pcb/` means on this machine."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from steadyolo.data.cache import CacheEntry
from steadyolo.data.description import YAML_SUFFIXES, find_description, resolve_description
from steadyolo.data.index import Index
from steadyolo.data.mirror import Mirror, Progress
from steadyolo.data.transfer import PAUSES_S
from steadyolo.errors import SteadyError, UserError
from steadyolo.spec.location import Location, is_location, parse_location
from steadyolo.vault.objects import ObjectStore

_ULTRALYTICS_OWN = ("http://", "https://", "ul://")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A data set in the cache, which stays as it is until `close`. `data` is what Ultralytics takes as `data=`."""

    data: Path
    num_fetched: int
    warnings: tuple[str, ...]  # what the user has to know, such as the age of a copy while the store does not answer
    entry: CacheEntry
    now_s: Callable[[], float]

    def close(self) -> None:
        """From now on it may be changed and removed. Closing twice is not an error."""
        self.entry.stamp("used", self.now_s())
        self.entry.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def is_in_store(data: str) -> bool:
    """Whether `data=` names a place in a store, as against a path, or a URL that Ultralytics downloads itself."""
    return is_location(data) and not data.strip().lower().startswith(_ULTRALYTICS_OWN)


def fetch_dataset(
    text: str,
    *,
    open_store: Callable[[Location], ObjectStore],
    cache: Path,
    budget_bytes: int | None = None,
    wants_folder: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
    reread: bool = False,
    num_parallel: int = 16,
    now_s: Callable[[], float] = time.time,
    pauses_s: Sequence[float] = PAUSES_S,
) -> Dataset:
    """Mirror the data set at a URL into `cache`, and hold it in use until the result is closed.

    `text` names its folder or its data yaml; `wants_folder` is for classification. `on_progress` is called in this
    thread, at least every second while something is fetched; what it raises ends the fetching, and what arrived stays.
    `reread` verifies every file against what was fetched. Without `budget_bytes` the cache takes at most 100 GiB.
    Raises: what `Mirror.update` raises; UserError for a URL that names no data set and a cache that cannot be used.
    """
    location, named = _split(parse_location(text))
    with _clear_disk_errors(cache):
        entry = CacheEntry(cache.expanduser().absolute(), _entry_name(location))
        try:
            entry.work.wait(on_wait=lambda: on_progress(Progress(is_waiting=True)))
            store = open_store(location)
            find = partial(find_description, named=named, wants_folder=wants_folder, url=store.url)
            mirrored = Mirror(
                store=store,
                entry=entry,
                check=find,
                on_progress=on_progress,
                budget_bytes=budget_bytes,
                num_parallel=num_parallel,
                now_s=now_s,
                pauses_s=pauses_s,
            ).update(reread=reread)
            described = find(mirrored.keys)
            data = entry.files
            if described is not None:
                data = resolve_description(entry.files, described, entry.folder / described)
            entry.use.take(shared=True)  # nobody else asks for it while `work` is held here
            entry.stamp("used", now_s())
            entry.work.release()
        except BaseException:
            entry.release()
            raise
    return Dataset(data=data, num_fetched=mirrored.num_fetched, warnings=mirrored.warnings, entry=entry, now_s=now_s)


def _split(location: Location) -> tuple[Location, str | None]:
    """The folder of a data set, and the name of its data yaml where the URL gives one."""
    if location.path.endswith(YAML_SUFFIXES):
        return location.parent, location.name
    return location, None


def _entry_name(location: Location) -> str:
    """A folder name that tells people which data set it is, and that no other place and no other version has."""
    same = {name: value for name, value in location.options.items() if name == "endpoint"}
    where = f"{Index.VERSION} {replace(location, options=same)}"
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", location.name or location.bucket).strip("-.") or "data"
    return f"{readable[:64]}-{hashlib.sha256(where.encode()).hexdigest()[:16]}"


@contextmanager
def _clear_disk_errors(cache: Path) -> Iterator[None]:
    try:
        yield
    except SteadyError:
        raise
    except OSError as error:
        raise UserError(
            f"the data cache {cache} cannot be used: {error}",
            remedy="make room or permit writing there, or choose another folder: data.cache=FOLDER",
        ) from error

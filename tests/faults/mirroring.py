"""Children of the tests of fetching: processes that fetch, are killed, wait, or fill a disk.

Run as a script: `python -m tests.faults.mirroring DEED FOLDER ...`; the result is a line of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from steadyolo.data.cache import CacheEntry
from steadyolo.data.index import IndexFile
from steadyolo.data.mirror import Mirror, Progress
from steadyolo.errors import UserError
from steadyolo.testing.faulty_disk import Call, KillingCalls, WatchedCalls
from steadyolo.vault.disk import Disk, LocalDisk
from steadyolo.vault.folder_store import FolderStore
from steadyolo.vault.objects import ObjectStore
from tests.unit.data.stored import WatchedStore, contents, fetch, held

FILES = {"data.yaml": b"train: images\nval: images\nnames: [a]\n", "images/1.jpg": b"one", "images/2.jpg": b"two"}
LATER = {"data.yaml": FILES["data.yaml"], "images/2.jpg": b"other", "more/3.jpg": b"three"}
CHANGES: tuple[tuple[dict[str, bytes], dict[str, bytes]], ...] = (({}, FILES), (FILES, LATER))


def mirror(store: ObjectStore, cache: Path, disk: Disk) -> int:
    """Mirror in one thread; returns how much was fetched."""
    entry = CacheEntry(cache, "pcb")
    try:
        entry.work.wait(on_wait=lambda: None)
        return Mirror(store=store, entry=entry, disk=disk, num_parallel=1, pauses_s=()).update().num_fetched
    finally:
        entry.release()


def put_all(store: ObjectStore, files: dict[str, bytes]) -> None:
    """Make the store hold exactly these; what is right already keeps its tag."""
    there = contents(store)
    for key in there.keys() - files.keys():
        store.delete(key)
    for key, data in files.items():
        if there.get(key) != data:
            store.put(key, data)


def kill_everywhere(scratch: Path) -> dict[str, object]:
    """Die at every system call of a first fetch and of an update, and each time fetch again in another process."""
    store = FolderStore(scratch / "store")
    points, survivors, flaws = [], [], []
    for before, now in CHANGES:
        calls = WatchedCalls()
        prepare(store, scratch / f"{len(before)}-watched", before, now)
        calls.arm()
        mirror(store, scratch / f"{len(before)}-watched", LocalDisk(calls))
        for nth, call in enumerate(calls.calls):  # by number: names of temporaries are random
            for when in ("before", "midway") if call.operation == "write" else ("before",):
                cache = scratch / f"{len(before)}-{nth}-{when}"
                points.append(f"{when} {call}")
                prepare(store, cache, before, now)
                if not _dies(store, cache, when, nth):
                    survivors.append(points[-1])
                flaws += [f"{points[-1]}: {flaw}" for flaw in _flaws(store, cache, now)]
    return {"num_points": len(points), "survivors": survivors, "flaws": flaws}


def prepare(store: ObjectStore, cache: Path, before: dict[str, bytes], now: dict[str, bytes]) -> None:
    """A cache that mirrors the store as it was, and the store as it is now."""
    put_all(store, before)
    if before:
        mirror(store, cache, LocalDisk())
    put_all(store, now)


class _KillingNth(KillingCalls):
    """Kills at a call by its number."""

    def __init__(self, when: str, nth: int) -> None:
        super().__init__("")
        self._when, self._nth = when, nth

    def meet(self, call: Call) -> None:
        if len(self.calls) - 1 == self._nth:
            self._point = f"{self._when} {call}"
        super().meet(call)


def _dies(store: ObjectStore, cache: Path, when: str, nth: int) -> bool:
    """Mirror in a child that is killed at a call. Whether it was."""
    pid = os.fork()
    if pid == 0:
        try:
            calls = _KillingNth(when, nth)
            calls.arm()
            mirror(store, cache, LocalDisk(calls))
        finally:
            os._exit(0)
    status = os.waitpid(pid, 0)[1]
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def _flaws(store: ObjectStore, cache: Path, now: dict[str, bytes]) -> list[str]:
    """What is wrong after a kill, and after another process fetched."""
    files = cache / "pcb" / "files"
    left = held(files)
    found = [] if is_sound(cache) else [f"the mirror counts as complete with {left}"]
    watched = WatchedStore(store)
    mirror(watched, cache, LocalDisk())
    if held(files) != now:
        found.append(f"the next process leaves {held(files)}")
    if again := [key for key in watched.gets if left.get(key) == now[key]]:
        found.append(f"{again} were there and are fetched again")
    expected = {"files", "index.json", "arrivals.jsonl", "confirmed"}
    return found + [f"{path.name} is left behind" for path in (cache / "pcb").iterdir() if path.name not in expected]


def is_sound(cache: Path) -> bool:
    """Whether a mirror that counts as complete is exactly what the store held at some time."""
    folder = cache / "pcb"
    return not IndexFile(folder, disk=LocalDisk()).read().complete or held(folder / "files") in (FILES, LATER)


def fetch_slowly(store: Path, cache: Path) -> dict[str, object]:
    """Fetch with a pause before each object."""
    fetch(WatchedStore(FolderStore(store), lambda *_: time.sleep(0.05)), cache, num_parallel=2).close()
    return {}


def fetch_together(store: Path, cache: Path) -> dict[str, object]:
    """Fetch, but not before another process waits for that; tells what it got from the store."""
    waiting = cache.with_name("waiting")

    def meet(verb: str, key: str, nth: int) -> None:
        deadline = time.monotonic() + 30
        while verb == "get" and not waiting.exists() and time.monotonic() < deadline:
            time.sleep(0.01)

    def on_progress(progress: Progress) -> None:
        if progress.is_waiting:
            waiting.touch()

    watched = WatchedStore(FolderStore(store), meet)
    with fetch(watched, cache, on_progress=on_progress) as dataset:
        return {"num_gets": len(watched.gets), "files": len(held(dataset.entry.files))}


def hold(store: Path, cache: Path) -> dict[str, object]:
    """Fetch, tell so, and hold the data set in use until killed."""
    with fetch(FolderStore(store), cache) as dataset:
        sys.stdout.write(f"{dataset.entry.name}\n")
        sys.stdout.flush()
        time.sleep(60)
    return {}


def fill_up(store: Path, cache: Path) -> dict[str, object]:
    """Fetch into a small file system: what is too large from the start, and what runs out of room on the way."""
    told = []
    watched = WatchedStore(FolderStore(store))
    try:
        fetch(watched, cache)
    except UserError as error:
        told.append(str(error))
    num_gets = len(watched.gets)
    ballast = cache / "ballast"

    def fill(verb: str, key: str, nth: int) -> None:
        if verb == "get" and nth == 3:
            _fill(ballast)

    for path in (store / "large").iterdir():
        path.unlink()
    try:
        fetch(WatchedStore(FolderStore(store), fill), cache, num_parallel=1)
    except UserError as error:
        told.append(str(error))
    ballast.unlink()
    last = WatchedStore(FolderStore(store))
    with fetch(last, cache) as dataset:
        is_right = held(dataset.entry.files) == held(store)
    return {"told": told, "num_gets": num_gets, "num_gets_after": len(last.gets), "is_right": is_right}


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def main() -> None:
    """Do what was asked for."""
    deed, *arguments = sys.argv[1:]
    deeds = {known.__name__: known for known in (kill_everywhere, fetch_slowly, fetch_together, hold, fill_up)}
    result = deeds[deed](*map(Path, arguments))  # type: ignore[operator]
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()

"""Runs with copies in a store, for tests: a folder with committed checkpoints, and stores that fail when told to."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from steadyolo.events import Event
from steadyolo.vault.checkpoints import Checkpoints
from steadyolo.vault.claim import Claim
from steadyolo.vault.objects import Data, Listed, ObjectStore, Stored
from steadyolo.vault.remote_run import RemoteRun
from steadyolo.vault.session import take_place
from steadyolo.vault.uploader import TierSettings, Uploader
from tests.faults.disks import snapshot

RUN_ID = "run-1"


def claim(token: int = 1, writer_id: str = "w1", run_id: str = RUN_ID, tiers: Mapping[str, str] | None = None) -> Claim:
    since = "2026-01-01T00:00:00+00:00"
    return Claim(token=token, run_id=run_id, writer_id=writer_id, host="here", since=since, tiers=tiers or {})


def run_folder(folder: Path, *steps: int) -> Checkpoints:
    """A run folder with a committed checkpoint for each step, and some other files."""
    (folder / "steadyolo").mkdir(parents=True, exist_ok=True)
    (folder / "weights").mkdir(exist_ok=True)
    (folder / "results.csv").write_text("epoch,loss\n1,0.5\n")
    (folder / "weights" / "best.pt").write_bytes(b"weights")
    (folder / "steadyolo" / "events.jsonl").write_text('{"kind": "run_started"}\n')
    checkpoints = Checkpoints(folder / "steadyolo" / "checkpoints", writer_id="w1")
    for step in steps:
        checkpoints.commit(snapshot(step), parent=None)
    return checkpoints


def name_of(step: int) -> str:
    return snapshot(step).name


class Clock:
    """Time that passes only when somebody waits."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class Watched:
    """A store whose calls are counted and met: `meet(operation, key)` runs before each of them, and may raise."""

    def __init__(self, store: ObjectStore, meet: Callable[[str, str], None] = lambda operation, key: None) -> None:
        self.url = store.url
        self.store = store
        self.meet = meet
        self.calls: list[tuple[str, str]] = []

    def _pass(self, operation: str, key: str) -> None:
        self.calls.append((operation, key))
        self.meet(operation, key)

    def put(self, key: str, data: Data) -> None:
        self._pass("put", key)
        self.store.put(key, data)
        self._pass("after put", key)

    def put_if(self, key: str, data: Data, *, tag: str | None) -> str:
        self._pass("put_if", key)
        return self.store.put_if(key, data, tag=tag)

    def get(self, key: str) -> Stored:
        self._pass("get", key)
        return self.store.get(key)

    def stream(self, key: str) -> Iterator[Data]:
        self._pass("get", key)
        yield from self.store.stream(key)

    def list(self, folder: str) -> list[Listed]:
        self._pass("list", folder)
        return self.store.list(folder)

    def holds(self, listed: Listed, data: Data) -> bool:
        self._pass("holds", listed.key)
        return self.store.holds(listed, data)

    def delete(self, key: str) -> None:
        self._pass("delete", key)
        self.store.delete(key)
        self._pass("after delete", key)


def dies_at(nth: int) -> Callable[[str, str], None]:
    """Something to `meet` calls with: SIGKILL before the `nth` of them, counted from 1."""
    seen = 0

    def meet(operation: str, key: str) -> None:
        nonlocal seen
        seen += 1
        if seen == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    return meet


def uploader(
    store: ObjectStore,
    folder: Path,
    checkpoints: Checkpoints,
    *,
    clock: Clock | None = None,
    best: str | None = None,
    token: int = 1,
    writer_id: str = "w1",
    place: Callable[[], RemoteRun] | None = None,
    tiers: Mapping[str, str] | None = None,
    **settings: object,
) -> tuple[Uploader, list[Event]]:
    """An uploader of the run in `folder`, not started: `work_once` is called by the test. And what it told."""
    told: list[Event] = []
    clock = clock or Clock()
    mine = claim(token, writer_id, tiers=tiers)
    return Uploader(
        folder,
        settings=TierSettings(tier="store", **settings),  # type: ignore[arg-type]
        claim=mine,
        place=place or (lambda: take_place(store, folder.name, mine, is_ours=False)),
        token_of=lambda _: 1,
        best=best,
        emit=told.append,
        clock=clock,
        sleep=clock.sleep,
    ), told


def upload_all(store: ObjectStore, folder: Path, checkpoints: Checkpoints, **settings: object) -> RemoteRun:
    """Send everything that `folder` has, and return the run in the store."""
    sender, told = uploader(store, folder, checkpoints, **settings)
    sender.flush()
    while not sender.drain(0):
        sender.work_once()
    assert not [event for event in told if event.kind == "copy_failed"], told
    return RemoteRun(store, folder.name)

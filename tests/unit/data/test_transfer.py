from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from steadyolo.data.transfer import Transfer
from steadyolo.errors import Transient
from steadyolo.testing.memory_store import MemoryStore
from steadyolo.vault.objects import Listed, ObjectStore
from tests.unit.data.stored import FILES, Md5Store, WatchedStore, filled


class KmsStore(MemoryStore):
    """Its tags look like MD5s and are none, as where a store encrypts with keys of its own; bodies are read again."""

    def __init__(self) -> None:
        super().__init__()
        self.num_rereads = 0

    def holds(self, listed: Listed, data: bytes | memoryview) -> bool:
        self.num_rereads += 1
        return super().holds(listed, data)


def transferred(store: ObjectStore, *, num_parallel: int = 4) -> dict[str, bytes]:
    got: dict[str, bytes] = {}
    Transfer(
        store,
        write=lambda listed, data: (listed.key, data),
        keep=lambda arrived: got.update([arrived]),
        num_parallel=num_parallel,
        pauses_s=(0.0,),
    ).run(store.list(""), on_progress=lambda *_: None)
    return got


def test_all_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    assert transferred(filled(Md5Store())) == FILES
    monkeypatch.setattr("steadyolo.data.transfer._LARGE_BYTES", 10)
    assert transferred(filled(Md5Store())) == FILES


def test_tags_that_only_look_like_md5_are_found_out_once() -> None:
    store = KmsStore()
    assert transferred(filled(store), num_parallel=1) == FILES
    assert store.num_rereads == 1


def test_large_objects_come_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steadyolo.data.transfer._LARGE_BYTES", 10)
    running = threading.Semaphore(1)
    met_alone = []

    def meet(verb: str, key: str, nth: int) -> None:
        if verb == "get" and key.endswith(".jpg"):
            met_alone.append(running.acquire(blocking=False))
            threading.Event().wait(0.005)
            running.release()

    transferred(WatchedStore(filled(MemoryStore()), meet))
    assert met_alone == [True] * 6


def test_it_really_is_parallel() -> None:
    together = threading.Barrier(4, timeout=10)

    def meet(verb: str, key: str, nth: int) -> None:
        if verb == "get" and 2 <= nth <= 5:  # the first comes alone
            together.wait()

    transferred(WatchedStore(filled(MemoryStore()), meet), num_parallel=4)


def test_nothing_is_kept_after_a_failure() -> None:
    store = filled(MemoryStore())
    release, answered = threading.Event(), threading.Event()
    kept: list[str] = []

    def meet(verb: str, key: str, nth: int) -> None:
        if verb == "get" and key == "data.yaml":
            release.wait(10)
            answered.set()
        elif verb == "get" and nth > 1:  # the first comes alone
            raise Transient("gone", remedy="wait")

    watched = WatchedStore(store, meet)
    with pytest.raises(Transient, match="gone"):
        Transfer(
            watched,
            write=lambda listed, data: listed.key,
            keep=kept.append,
            num_parallel=2,
            pauses_s=(),
        ).run(watched.list(""), on_progress=lambda *_: None)
    release.set()
    assert answered.wait(10)
    for thread in threading.enumerate():
        if thread.name == "data-fetch":
            thread.join(10)
    assert kept == ["labels/train/empty.txt"], "only what was kept before the failure"


def test_a_wrong_size_is_never_taken() -> None:
    store = filled(MemoryStore())
    wanted = [replace(listed, num_bytes=listed.num_bytes + 1) for listed in store.list("")]
    transfer = Transfer(
        store, write=lambda *_: pytest.fail("taken"), keep=lambda _: None, num_parallel=1, pauses_s=(0.0,)
    )
    with pytest.raises(Transient, match="that are not the"):
        transfer.run(wanted, on_progress=lambda *_: None)

"""What every `ObjectStore` does, whoever provides it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from steadyolo.adapters.objects.opening import open_store
from steadyolo.adapters.objects.sealed_store import SealedStore
from steadyolo.errors import SteadyError, UserError
from steadyolo.spec.location import parse_location
from steadyolo.testing.memory_store import MemoryStore
from steadyolo.vault.folder_store import FolderStore
from steadyolo.vault.objects import Absent, Listed, ObjectStore, Stored, Taken
from tests.servers.azurite import CONTAINER

KEY = bytes(range(32))
NAMES = [
    "plain.txt",
    "two words.txt",
    "ünïcode/日本語.bin",
    "x=1+1&y=%20~#?.json",
    "brackets [1] {2} (3) 'quoted'",
    "deep/er/and/deeper/still",
    ".hidden",
]


@pytest.fixture(params=["memory", "folder", "s3", "sealed memory", "sealed s3", "azure"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty store."""

    def s3() -> ObjectStore:
        return open_store(parse_location(request.getfixturevalue("s3_url")))

    def azure() -> ObjectStore:
        server, environment = request.getfixturevalue("azurite"), request.getfixturevalue("monkeypatch")
        for name, value in server.variables.items():
            environment.setenv(name, value)
        return open_store(parse_location(f"az://{CONTAINER}/{request.getfixturevalue('prefix')}"))

    makers: dict[str, Callable[[], ObjectStore]] = {
        "memory": MemoryStore,
        "folder": lambda: FolderStore(tmp_path / "store"),
        "s3": s3,
        "sealed memory": lambda: SealedStore(MemoryStore(), KEY),
        "sealed s3": lambda: SealedStore(s3(), KEY),
        "azure": azure,
    }
    return makers[request.param]()


def keys(store: ObjectStore, folder: str = "") -> list[str]:
    return [listed.key for listed in store.list(folder)]


def the_only(store: ObjectStore) -> Listed:
    (listed,) = store.list("")
    return listed


# --- put, get, list, holds, delete ---


@pytest.mark.parametrize("num_bytes", [0, 1, 1000, 9 * 2**20])
def test_what_was_put_comes_back(store: ObjectStore, num_bytes: int) -> None:
    data = (b"0123456789" * (num_bytes // 10 + 1))[:num_bytes]
    store.put("a/b", memoryview(data))
    assert store.get("a/b").data == data
    assert b"".join(bytes(piece) for piece in store.stream("a/b")) == data
    listed = the_only(store)
    assert (listed.key, listed.num_bytes) == ("a/b", num_bytes)
    assert store.holds(listed, data)
    assert store.holds(listed, memoryview(data))


def test_keys_come_back_as_they_are(store: ObjectStore) -> None:
    for name in NAMES:
        store.put(name, name.encode())
    assert keys(store) == sorted(NAMES)
    assert [bytes(store.get(name).data).decode() for name in NAMES] == NAMES
    for name in NAMES:
        store.delete(name)
    assert keys(store) == []


def test_the_newest_put_counts(store: ObjectStore) -> None:
    store.put("a", b"old")
    before, listed = store.get("a"), the_only(store)
    store.put("a", b"new")
    after = store.get("a")
    assert (before.data, after.data) == (b"old", b"new")
    assert before.tag != after.tag
    assert listed.tag != the_only(store).tag


def test_a_listing_and_a_read_give_the_same_tag(store: ObjectStore) -> None:
    store.put("a", b"1")
    assert the_only(store).tag == store.get("a").tag


def test_a_list_is_of_one_folder(store: ObjectStore) -> None:
    for key in ("a/1", "a/b/2", "ab/3", "a.txt", "b/a/4"):
        store.put(key, b"")
    assert keys(store, "a/") == ["a/1", "a/b/2"]
    assert keys(store, "a/b/") == ["a/b/2"]
    assert keys(store) == ["a.txt", "a/1", "a/b/2", "ab/3", "b/a/4"]
    assert keys(store, "nowhere/") == []


def test_what_is_absent(store: ObjectStore) -> None:
    for _ in range(2):
        with pytest.raises(Absent, match="a/b"):
            store.get("a/b")
        store.delete("a/b")
        assert keys(store) == []
        store.put("a/b", b"")
        store.delete("a/b")


def test_a_deletion_leaves_the_neighbours(store: ObjectStore) -> None:
    for key in ("a/b/1", "a/b/2", "a/c"):
        store.put(key, b"")
    store.delete("a/b/1")
    assert keys(store) == ["a/b/2", "a/c"]
    store.delete("a/b/2")
    store.delete("a")  # the folder of another is no object
    assert keys(store) == ["a/c"]


def test_holds_is_true_only_of_the_same_body(store: ObjectStore) -> None:
    store.put("a", b"same")
    listed = the_only(store)
    assert store.holds(listed, b"same")
    assert not store.holds(listed, b"semi")
    assert not store.holds(listed, b"same size or not")
    assert not store.holds(listed, b"")
    store.delete("a")
    assert not store.holds(Listed(key="a", num_bytes=5, tag=listed.tag), b"other")


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", ".", "..", "a/../b", "a/./b", "a\\b", "a\nb", "a\x7f"])
def test_names_that_some_store_would_change_are_refused_by_all(store: ObjectStore, key: str) -> None:
    for use in (store.get, store.delete, lambda key: store.put(key, b""), lambda key: store.put_if(key, b"", tag=None)):
        with pytest.raises(UserError, match="is not an object's key"):
            use(key)
    assert keys(store) == []


@pytest.mark.parametrize("store", ["memory", "folder", "s3"], indirect=True)
def test_a_long_list_is_complete_and_sorted(store: ObjectStore) -> None:
    wanted = [f"{number % 7}/{number:04d}" for number in range(1005)]  # S3 lists a thousand at a time
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(key, b""), wanted))
    assert keys(store) == sorted(wanted)
    assert keys(store, "3/") == [key for key in sorted(wanted) if key.startswith("3/")]


# --- put_if ---


def test_a_conditional_put_wants_the_tag(store: ObjectStore) -> None:
    with pytest.raises(Taken):
        store.put_if("claim", b"early", tag="no such tag")
    first = store.put_if("claim", b"first", tag=None)
    assert store.get("claim") == Stored(data=b"first", tag=first)
    with pytest.raises(Taken, match="claim"):
        store.put_if("claim", b"another first", tag=None)
    second = store.put_if("claim", b"second", tag=first)
    assert second != first
    with pytest.raises(Taken):
        store.put_if("claim", b"late", tag=first)
    assert store.get("claim").data == b"second"
    store.delete("claim")
    with pytest.raises(Taken):
        store.put_if("claim", b"too late", tag=second)
    assert keys(store) == []
    store.put_if("claim", b"anew", tag=None)


def test_ones_own_conditional_put_counts_when_it_is_tried_again(store: ObjectStore) -> None:
    tag = store.put_if("claim", b"mine", tag=None)
    assert store.put_if("claim", b"mine", tag=None) == tag
    newer = store.put_if("claim", b"mine, renewed", tag=tag)
    assert store.put_if("claim", b"mine, renewed", tag=tag) == newer


@pytest.mark.parametrize("is_update", [False, True])
def test_one_of_many_conditional_puts_wins(store: ObjectStore, is_update: bool) -> None:
    tag = store.put_if("claim", b"before", tag=None) if is_update else None
    start = threading.Barrier(8)

    def put(body: bytes) -> str | None:
        start.wait(30)
        try:
            return store.put_if("claim", body, tag=tag)
        except Taken:
            return None

    is_quick = not store.url.startswith("s3:")  # SeaweedFS lets those who lost wait for seconds
    for turn in range(10 if is_quick else 1):
        bodies = [f"writer {number} of turn {turn}".encode() for number in range(8)]
        with ThreadPoolExecutor(8) as pool:
            tags = list(pool.map(put, bodies))
        (winner,) = (number for number, won in enumerate(tags) if won is not None)
        assert store.get("claim") == Stored(data=bodies[winner], tag=tags[winner] or "")
        if is_update:
            tag = tags[winner]
        else:
            store.delete("claim")


def test_readers_see_one_body_or_another(store: ObjectStore) -> None:
    bodies = [bytes([number]) * (20_000 + number) for number in range(8)]
    store.put("a", bodies[0])
    is_done = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not is_done.is_set():
            seen.add(bytes(store.get("a").data))
            assert the_only(store).key == "a"

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        for body in bodies[1:]:
            store.put("a", body)
        is_done.set()
        for reader in readers:
            reader.result(30)
    assert seen
    assert seen <= set(bodies)


# --- generated histories ---

KEYS = st.sampled_from(["a", "b", "c/1", "c/2", "c/d/3", "e f/ü"])
BODIES = st.binary(max_size=3)


class StoreAgainstDict(RuleBasedStateMachine):
    """Any history of calls gives what a dictionary would."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__()
        self.store = store
        self.model: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}  # of conditional puts, which have keys of their own

    @rule(key=KEYS, data=BODIES)
    def put(self, key: str, data: bytes) -> None:
        self.store.put(key, data)
        self.model[key] = data

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        self.store.delete(key)
        self.model.pop(key, None)

    @rule(key=KEYS, data=BODIES, knows=st.booleans())
    def put_if(self, key: str, data: bytes, knows: bool) -> None:
        key = f"claims/{key}"
        known = self.tags.get(key) if key in self.model else None
        tag = known if knows else "a tag of nobody"
        try:
            self.tags[key] = self.store.put_if(key, data, tag=tag)
        except Taken:
            assert not knows
            assert self.model.get(key) != data
        else:
            assert knows or self.model.get(key) == data
            self.model[key] = data

    @rule(key=KEYS)
    def delete_claim(self, key: str) -> None:
        self.delete(f"claims/{key}")

    @rule(key=KEYS, data=BODIES)
    def holds(self, key: str, data: bytes) -> None:
        for listed in self.store.list(""):
            if listed.key == key:
                assert self.store.holds(listed, data) == (self.model[key] == data)

    @invariant()
    def is_the_same(self) -> None:
        found = {listed.key: listed.num_bytes for listed in self.store.list("")}
        assert found == {key: len(data) for key, data in sorted(self.model.items())}
        assert {key: self.store.get(key).data for key in found} == self.model
        for folder in ("c/", "claims/", "claims/c/"):
            assert keys(self.store, folder) == sorted(key for key in self.model if key.startswith(folder))


@pytest.mark.parametrize("kind", ["memory", "folder", "sealed memory"])
def test_any_history_is_as_of_a_dictionary(kind: str, tmp_path: Path) -> None:
    numbers: Iterator[int] = iter(range(10**9))
    makers: dict[str, Callable[[], ObjectStore]] = {
        "memory": MemoryStore,
        "folder": lambda: FolderStore(tmp_path / str(next(numbers))),
        "sealed memory": lambda: SealedStore(MemoryStore(), KEY),
    }
    effort = settings(max_examples=40, stateful_step_count=25)
    run_state_machine_as_test(lambda: StoreAgainstDict(makers[kind]()), settings=effort)


def test_errors_are_ours(store: ObjectStore) -> None:
    with pytest.raises(SteadyError) as raised:
        store.get("absent")
    assert raised.value.remedy

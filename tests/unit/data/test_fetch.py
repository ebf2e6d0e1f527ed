from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import yaml

from steadyolo.data.boards import write_boards
from steadyolo.data.fetch import fetch_dataset, is_in_store
from steadyolo.data.mirror import Progress
from steadyolo.errors import SteadyError, Transient, UserError
from steadyolo.spec.location import Location
from steadyolo.testing.memory_store import MemoryStore
from steadyolo.vault.folder_store import FolderStore
from steadyolo.vault.objects import ObjectStore
from tests.unit.data.stored import FILES, URL, Md5Store, WatchedStore, both_kinds, contents, down, fetch, filled, held

NUM_FILES = len(FILES)


@pytest.fixture(params=[0, 1], ids=["memory", "folder"])
def store(request: pytest.FixtureRequest, quick_path: Path) -> ObjectStore:
    return filled(both_kinds(quick_path)[request.param])


@pytest.fixture
def cache(quick_path: Path) -> Path:
    return quick_path / "cache"


# --- what arrives ---


@pytest.mark.parametrize("task", ["detect", "classify"])
def test_a_data_set_of_boards_arrives_whole(quick_path: Path, cache: Path, task: str) -> None:
    size_px = (48, 48) if task == "classify" else (96, 96)
    boards = write_boards(quick_path / "boards", task=task, num_train=6, num_val=6, size_px=size_px)
    folder = boards if task == "classify" else boards.parent
    url = folder.as_uri() + "/"

    def open_store(location: Location) -> ObjectStore:
        return FolderStore(Path(location.path))

    with fetch_dataset(url, open_store=open_store, cache=cache, wants_folder=task == "classify") as dataset:
        files = dataset.entry.files
        assert held(files) == held(folder)
        assert dataset.num_fetched == len(held(folder)) > 10
        assert dataset.warnings == ()
        if task == "classify":
            assert dataset.data == files
        else:
            meant = yaml.safe_load(dataset.data.read_text())
            assert [meant["path"], meant["train"]] == [str(files), str(files / "images/train")]
            assert meant["names"] == yaml.safe_load(boards.read_text())["names"]


def test_a_copy_of_an_unchanged_data_set_costs_one_list_request(store: ObjectStore, cache: Path) -> None:
    fetch(store, cache).close()
    watched = WatchedStore(store)
    with fetch(watched, cache) as dataset:
        assert (watched.num_lists, watched.gets, dataset.num_fetched) == (1, [], 0)
        assert held(dataset.entry.files) == FILES


def test_looking_at_5000_unchanged_files_is_cheap(cache: Path) -> None:
    files = {f"{kind}/{number}": b"0 .5 .5 .1 .1" for kind in ("images/train", "images/val") for number in range(2500)}
    store = filled(MemoryStore(), {**files, "data.yaml": FILES["data.yaml"]})
    fetch(store, cache).close()
    watched = WatchedStore(store)
    begin_s = time.process_time()
    fetch(watched, cache).close()
    spent_s = time.process_time() - begin_s
    assert (watched.num_lists, watched.gets) == (1, [])
    assert spent_s < 1.0, "ten times what it takes"


def test_unchanged_files_are_not_even_read(store: ObjectStore, cache: Path) -> None:
    with fetch(store, cache) as dataset:
        path = dataset.entry.files / "images/train/1.jpg"
    before = path.stat()
    path.write_bytes(bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with fetch(store, cache) as dataset:  # only reading could have found it
        assert held(dataset.entry.files) != FILES
    with fetch(store, cache, reread=True) as dataset:
        assert held(dataset.entry.files) == FILES
        assert dataset.num_fetched == 1


def test_the_yaml_may_be_named(store: ObjectStore, cache: Path) -> None:
    asked: list[Location] = []

    def open_store(location: Location) -> ObjectStore:
        asked.append(location)
        return store

    store.put("other.yaml", FILES["data.yaml"])
    with fetch_dataset("gs://bucket/pcb/other.yaml", open_store=open_store, cache=cache) as dataset:
        assert dataset.data.name == "other.yaml"
    assert str(asked[0]) == "gs://bucket/pcb"


def test_progress_is_told_and_may_end_it(store: ObjectStore, cache: Path) -> None:
    told: list[Progress] = []
    fetch(store, cache, on_progress=told.append).close()
    assert [(it.num_done, it.num_files) for it in told] == [(n, NUM_FILES) for n in range(1, NUM_FILES + 1)]
    assert told[-1].done_bytes == told[-1].num_bytes == sum(map(len, FILES.values()))

    def interrupt(progress: Progress) -> None:
        if progress.num_done == 3:
            raise SystemExit(75)

    with pytest.raises(SystemExit):
        fetch(store, cache.with_name("other"), on_progress=interrupt, num_parallel=1)
    watched = WatchedStore(store)
    with fetch(watched, cache.with_name("other")) as dataset:
        assert held(dataset.entry.files) == FILES
    assert len(watched.gets) <= NUM_FILES - 3


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        ("s3://b/pcb/", True),
        ("file:///mnt/pcb", True),
        ("coco8.yaml", False),
        ("/data/pcb.yaml", False),
        ("https://ultralytics.com/assets/coco8.zip", False),
        ("ul://ann/datasets/pcb", False),
    ],
)
def test_what_is_in_a_store(data: str, answer: bool) -> None:
    assert is_in_store(data) is answer


# --- what changes in the store ---


def test_what_changed_in_the_store_is_fetched_and_removed(store: ObjectStore, cache: Path) -> None:
    with fetch(store, cache) as dataset:
        (dataset.entry.files / "labels/train.cache").write_bytes(b"written by Ultralytics")
    store.put("labels/train/1.txt", b"1 .2 .2 .1 .1\n")
    store.put("images/train/new.jpg", b"new")
    for n in range(3):
        store.delete(f"images/val/{n}.jpg")
        store.put(f"images/test/{n}.jpg", b"moved")
    store.put("data.yaml", FILES["data.yaml"].replace(b"images/val", b"images/test"))
    watched = WatchedStore(store)
    with fetch(watched, cache) as dataset:
        there = held(dataset.entry.files)
        assert there.pop("labels/train.cache") == b"written by Ultralytics"
        assert there == contents(store)
        assert not (dataset.entry.files / "images/val").exists()
        assert dataset.warnings == ()
    assert sorted(watched.gets) == sorted(
        ["data.yaml", "images/train/new.jpg", "labels/train/1.txt", *(f"images/test/{n}.jpg" for n in range(3))]
    )


def test_a_file_becomes_a_folder_and_back(store: ObjectStore, cache: Path) -> None:
    store.put("notes", b"a file")
    fetch(store, cache).close()
    for gone, come in (("notes", "notes/today"), ("notes/today", "notes")):
        store.delete(gone)
        store.put(come, b"other")
        with fetch(store, cache) as dataset:
            assert held(dataset.entry.files) == contents(store)


def test_a_store_that_turns_out_empty_takes_nothing_away(store: ObjectStore, cache: Path) -> None:
    fetch(store, cache).close()
    with pytest.raises(UserError, match="holds no files"):
        fetch(MemoryStore(), cache)
    with fetch(store, cache) as dataset:
        assert dataset.num_fetched == 0


def test_a_change_while_a_run_uses_the_copy_is_refused(store: ObjectStore, cache: Path) -> None:
    with fetch(store, cache) as first, fetch(store, cache) as second:
        assert first.data == second.data
        store.put("labels/train/1.txt", b"changed")
        with pytest.raises(UserError, match="in use by another run"):
            fetch(store, cache)
        assert held(first.entry.files) == FILES
    with fetch(store, cache) as third:
        assert held(third.entry.files) == contents(store)


def test_an_object_that_changes_while_it_is_fetched_is_noticed(store: ObjectStore, cache: Path) -> None:
    def change(verb: str, key: str, nth: int) -> None:
        if verb == "get" and key == "labels/train/2.txt" and nth <= NUM_FILES:
            store.put(key, b"7 .5 .5 .1 .1\n")  # as long as before

    with pytest.raises(Transient, match=r"labels/train/2\.txt"):
        fetch(WatchedStore(store, change), cache, num_parallel=1)
    watched = WatchedStore(store)
    with fetch(watched, cache) as dataset:
        assert held(dataset.entry.files) == contents(store)
    assert set(watched.gets) >= {"labels/train/2.txt"}
    assert len(watched.gets) < NUM_FILES


# --- what changes here ---


@pytest.mark.parametrize("harm", ["truncate", "flip", "delete", "replace"])
def test_damage_here_is_mended(store: ObjectStore, cache: Path, harm: str) -> None:
    with fetch(store, cache) as dataset:
        path = dataset.entry.files / "labels/val/1.txt"
    data = path.read_bytes()
    match harm:
        case "truncate":
            path.write_bytes(data[:-1])
        case "flip":
            path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        case "delete":
            path.unlink()
        case _:
            path.unlink()
            path.symlink_to(path.with_name("2.txt"))
    watched = WatchedStore(store)
    with fetch(watched, cache) as dataset:
        assert held(dataset.entry.files) == FILES
        assert not path.is_symlink()
        assert watched.gets == ["labels/val/1.txt"]


def test_a_file_that_was_only_touched_is_read_once(store: ObjectStore, cache: Path) -> None:
    with fetch(store, cache) as dataset:
        path = dataset.entry.files / "images/val/1.jpg"
    for _ in range(2):
        os.utime(path, (1, 1))
        with fetch(store, cache) as dataset:
            assert dataset.num_fetched == 0
    before = path.stat()
    path.write_bytes(bytes(before.st_size))
    os.utime(path, (1, 1))
    with fetch(store, cache) as dataset:  # its new time was noted, so that it is not read
        assert dataset.num_fetched == 0


@pytest.mark.parametrize("name", ["index.json", "arrivals.jsonl"])
def test_a_damaged_index_costs_time_only(store: ObjectStore, cache: Path, name: str) -> None:
    with fetch(store, cache) as dataset:
        index = dataset.entry.folder / "index.json"
    if name == "arrivals.jsonl":  # as if it had been killed before the end
        lines = [json.dumps(entry) for entry in json.loads(index.read_text())["files"]]
        index.with_name(name).write_text("\n".join(lines))
        index.unlink()
    else:
        index.write_text(index.read_text().replace('"num_bytes":', '"num_bytes":1', 1))
    with fetch(store, cache) as dataset:
        assert dataset.num_fetched == NUM_FILES
        assert held(dataset.entry.files) == FILES
        assert index.exists()


def test_what_never_was_in_the_store_stays_and_is_told(store: ObjectStore, cache: Path) -> None:
    with fetch(store, cache) as dataset:
        (dataset.entry.files / "images/train/mine.jpg").write_bytes(b"mine")
        (dataset.entry.files / "images/train/1.npy").write_bytes(b"Ultralytics'")
        (dataset.entry.files / "images/train/.1.0123.jpg").write_bytes(b"Ultralytics', half")
    for _ in range(2):
        with fetch(store, cache) as dataset:
            assert dataset.num_fetched == 0
            assert (dataset.entry.files / "images/train/mine.jpg").exists()
            assert dataset.warnings == ("not in the store, but beside what was fetched: images/train/mine.jpg",)


def test_a_repaired_image_is_fetched_again_but_not_from_under_a_run(store: ObjectStore, cache: Path) -> None:
    with fetch(store, cache) as dataset:
        path = dataset.entry.files / "images/train/1.jpg"
        path.write_bytes(b"repaired")
        with fetch(store, cache) as second:
            assert path.read_bytes() == b"repaired"
            assert "images/train/1.jpg" in second.warnings[0]
        (dataset.entry.files / "labels/train/1.txt").write_bytes(b"changed by hand")
        with pytest.raises(UserError, match="in use by another run"):
            fetch(store, cache)
    with fetch(store, cache) as dataset:
        assert (held(dataset.entry.files), dataset.warnings) == (FILES, ())


# --- a store that does not answer ---


def test_a_complete_copy_serves_while_the_store_is_down(store: ObjectStore, cache: Path) -> None:
    fetch(store, cache, now_s=lambda: 1_000_000.0).close()
    watched = WatchedStore(store, down)
    with fetch(watched, cache, now_s=lambda: 1_000_000.0 + 5400) as dataset:
        assert watched.num_lists == 3, "it was not asked for again"
        assert held(dataset.entry.files) == FILES
        assert "no answer" in dataset.warnings[0]
        assert "up to date 1.5 h ago" in dataset.warnings[0]
        path = dataset.entry.files / "images/train/1.jpg"
        path.write_bytes(b"repaired")
    with fetch(watched, cache) as dataset:
        assert "images/train/1.jpg" in dataset.warnings[1]
    path.unlink()
    with pytest.raises(Transient, match="no complete copy") as caught:
        fetch(watched, cache)
    assert "start again" in caught.value.remedy


def test_without_a_complete_copy_the_store_is_needed(store: ObjectStore, cache: Path) -> None:
    with pytest.raises(Transient, match="no complete copy"):
        fetch(WatchedStore(store, down), cache)

    def fail(verb: str, key: str, nth: int) -> None:
        if nth > 5:
            down()

    with pytest.raises(Transient, match="no answer"):
        fetch(WatchedStore(store, fail), cache)
    with pytest.raises(Transient, match="no complete copy"):
        fetch(WatchedStore(store, down), cache)


@pytest.mark.parametrize("nth", range(1, NUM_FILES + 1))
def test_a_request_that_fails_once_is_made_again(cache: Path, nth: int) -> None:
    store = filled(MemoryStore())
    failed: list[str] = []

    def fail(verb: str, key: str, at: int) -> None:
        if verb == "get" and at == nth:
            failed.append(key)
            down()

    watched = WatchedStore(store, fail)
    with fetch(watched, cache) as dataset:
        assert held(dataset.entry.files) == FILES
    assert len(failed) == 1
    assert len(watched.gets) == NUM_FILES + 1


@pytest.mark.parametrize("nth", range(1, NUM_FILES + 1))
@pytest.mark.parametrize("error", [Transient, UserError])
def test_what_arrived_before_a_failure_is_not_fetched_again(cache: Path, nth: int, error: type[SteadyError]) -> None:
    store = filled(MemoryStore())

    def fail(verb: str, key: str, at: int) -> None:
        if verb == "get" and at >= nth:
            raise error("gone", remedy="wait")

    with pytest.raises(error, match="gone"):
        fetch(WatchedStore(store, fail), cache, num_parallel=1)
    watched = WatchedStore(store)
    with fetch(watched, cache) as dataset:
        assert held(dataset.entry.files) == FILES
    assert len(watched.gets) == NUM_FILES - (nth - 1)


@pytest.mark.parametrize("answer", [b"", b"<html>503</html>", b"x" * len(FILES["images/val/1.jpg"])])
def test_a_body_that_is_not_what_was_listed_is_refused(cache: Path, answer: bytes) -> None:
    store = Md5Store()
    filled(store)

    def lie(verb: str, key: str, nth: int) -> bytes | None:
        return answer if key == "images/val/1.jpg" else None

    with pytest.raises(Transient, match=r"images/val/1\.jpg of memory://store arrived with"):
        fetch(WatchedStore(store, lie), cache)
    with fetch(store, cache) as dataset:
        assert held(dataset.entry.files) == FILES


# --- bad requests ---


@pytest.mark.parametrize(
    ("changes", "url", "message"),
    [
        ({"data.yaml": None}, URL, "holds no data yaml"),
        ({"data.yaml": None, "a.yaml": b"", "b.yml": b""}, URL, "several data yamls: a.yaml, b.yml"),
        ({}, "s3://bucket/pcb/pcb.yaml", "holds no pcb.yaml"),
        ({"images/../../evil": b"x"}, URL, "not a path inside"),
        ({"data.yaml": b"[1, 2]"}, URL, "is no mapping"),
        ({"data.yaml": b"a: [b"}, URL, "cannot be read"),
        ({}, "s4://bucket/pcb", "not a place"),
    ],
)
def test_bad_requests_are_refused(cache: Path, changes: dict[str, bytes | None], url: str, message: str) -> None:
    store = filled(MemoryStore(), {key: data for key, data in {**FILES, **changes}.items() if data is not None})
    watched = WatchedStore(store)
    with pytest.raises(UserError, match=message):
        fetch(watched, cache, url)
    if "data.yaml" not in changes or changes["data.yaml"] is None:
        assert watched.gets == [], "refused only after something was fetched"
    assert not list(cache.parent.rglob("evil"))


def test_a_cache_that_cannot_be_written(store: ObjectStore, cache: Path) -> None:
    cache.write_bytes(b"a file")
    with pytest.raises(UserError, match="data cache") as caught:
        fetch(store, cache)
    assert "data.cache=" in caught.value.remedy


def test_places_do_not_share_a_folder(cache: Path) -> None:
    urls = [
        "s3://bucket/pcb/",
        "s3://bucket/pcb/?endpoint=https://minio.example",
        "s3://other/pcb/",
        "gs://bucket/pcb/",
        "s3://bucket/PCB/",
        "s3://bucket/",
    ]
    names = set()
    for url in urls:
        with fetch(filled(MemoryStore()), cache, url) as dataset:
            names.add(dataset.entry.name)
            assert dataset.num_fetched == NUM_FILES
    assert len(names) == len(urls)
    with fetch(filled(MemoryStore()), cache, "s3://bucket/pcb/data.yaml?region=eu-west-1") as dataset:
        assert dataset.entry.name in names

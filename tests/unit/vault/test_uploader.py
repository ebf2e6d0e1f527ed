from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from steadyolo.errors import Transient, UserError
from steadyolo.events import CopyDropped, CopyFailed, CopyVerified, TakenOver
from steadyolo.testing.memory_store import MemoryStore
from steadyolo.vault.checkpoints import Checkpoints
from steadyolo.vault.copy import Copy
from steadyolo.vault.digested import from_text, to_text
from steadyolo.vault.folder_store import FolderStore
from steadyolo.vault.mirror import restore_mirror
from steadyolo.vault.remote_run import RemoteRun
from steadyolo.vault.session import take_place
from tests.faults.disks import snapshot
from tests.faults.stores import Clock, Watched, claim, name_of, run_folder, upload_all, uploader


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "train"


@pytest.fixture
def checkpoints(folder: Path) -> Checkpoints:
    return run_folder(folder, 1)


def down(operation: str, key: str) -> None:
    raise Transient("the network is down", remedy="wait")


def test_what_a_folder_has_is_queued_newest_first(folder: Path, checkpoints: Checkpoints) -> None:
    for step in (2, 3):
        checkpoints.commit(snapshot(step), parent=None)
    sender, told = uploader(MemoryStore(), folder, checkpoints, best=name_of(1))
    for _ in range(3):
        sender.work_once()
    assert [event.name for event in told if isinstance(event, CopyVerified)] == [name_of(3), name_of(1), name_of(2)]


def test_an_outage_of_an_hour_stops_nothing_and_is_caught_up_with(folder: Path, checkpoints: Checkpoints) -> None:
    clock = Clock()
    store = Watched(MemoryStore())
    sender, told = uploader(store, folder, checkpoints, clock=clock)
    sender.work_once()
    store.meet = down
    step, num_tries = 1, 0
    while clock.now_s < 3600:
        if clock.now_s >= step * 60:  # training goes on and saves every minute
            step += 1
            checkpoints.commit(snapshot(step), parent=None)
            sender.offer(name_of(step), 1000, best=None)
        wait_s = sender.work_once()
        assert wait_s > 0
        num_tries += 1
        clock.now_s += wait_s
    failures = [event for event in told if isinstance(event, CopyFailed)]
    assert 50 < num_tries < 200, "neither given up nor hammered"
    assert 30 < len(failures) <= 62, "told about once a minute"
    assert failures[0].error == "the network is down"
    store.meet = lambda operation, key: None
    sender.work_once()
    run = RemoteRun(store, "train")
    assert run.copies()[-1].name == name_of(step), "the newest comes first"
    sender.flush()
    while not sender.drain(0):
        sender.work_once()
    assert len(run.copies()) == 5, "and then as many as are kept"


def test_a_spool_that_is_full_gives_up_middle_aged_ones(folder: Path, checkpoints: Checkpoints) -> None:
    sender, told = uploader(Watched(MemoryStore(), down), folder, checkpoints, spool_bytes=3000)
    sender.work_once()
    for step in range(2, 12):
        sender.offer(name_of(step), 1000, best=name_of(4))
    needed = sorted(sender.needed())
    assert len(needed) == 3
    assert name_of(11) in needed, "the newest is never given up"
    assert name_of(4) in needed, "nor the best"
    assert len([event for event in told if isinstance(event, CopyDropped)]) == 7


def test_a_writer_with_a_successor_tells_it_once_and_writes_nothing_more(
    folder: Path, checkpoints: Checkpoints
) -> None:
    store, clock = MemoryStore(), Clock()
    upload_all(store, folder, checkpoints)
    sender, told = uploader(store, folder, checkpoints, clock=clock)
    sender.work_once()
    take_place(store, "train", claim(2, "w2"), is_ours=True)
    before = dict(store.objects)
    (folder / "results.csv").write_text("changed")
    checkpoints.commit(snapshot(2), parent=None)
    sender.offer(name_of(2), 1000, best=None)
    for _ in range(5):
        clock.now_s += 100
        sender.work_once()
    assert [event.kind for event in told].count("taken_over") == 1
    changed = {key for key in store.objects if before.get(key) != store.objects[key]}
    assert not {key for key in changed if not key.rpartition("/")[0].endswith(Copy(1, name_of(2)).label)}
    assert [copy.name for copy in RemoteRun(store, "train").copies()] == [name_of(1)]
    assert sender.needed() == ()
    assert sender.drain(0)


def test_an_idle_writer_notices_its_successor(folder: Path, checkpoints: Checkpoints) -> None:
    store, clock = MemoryStore(), Clock()
    sender, told = uploader(store, folder, checkpoints, clock=clock)
    clock.now_s = 1000.0
    while (wait_s := sender.work_once()) == 0:
        pass
    take_place(store, "train", claim(2, "w2"), is_ours=True)
    for _ in range(3):
        clock.now_s += wait_s
        wait_s = sender.work_once()
    assert any(isinstance(event, TakenOver) for event in told)
    assert clock.now_s < 1000 + 100


def test_old_copies_go_and_the_best_stays(folder: Path, checkpoints: Checkpoints) -> None:
    store = MemoryStore()
    sender, _ = uploader(store, folder, checkpoints, keep_last=2, best=name_of(1))
    sender.work_once()
    for step in range(2, 6):
        checkpoints.commit(snapshot(step), parent=None)
        sender.offer(name_of(step), 1000, best=name_of(1))
        sender.work_once()
    names = [copy.name for copy in RemoteRun(store, "train").copies()]
    assert names == [name_of(1), name_of(4), name_of(5)]


def test_a_role_that_may_not_delete_is_fine(folder: Path, checkpoints: Checkpoints) -> None:
    def refuse(operation: str, key: str) -> None:
        if operation == "delete":
            raise UserError("no permission", remedy="give it")

    store = MemoryStore()
    sender, told = uploader(Watched(store, refuse), folder, checkpoints, keep_last=1)
    sender.work_once()
    for step in range(2, 5):
        checkpoints.commit(snapshot(step), parent=None)
        sender.offer(name_of(step), 1000, best=None)
        assert sender.work_once() == 0
    assert not [event for event in told if isinstance(event, CopyFailed)]
    assert len(RemoteRun(store, "train").copies()) == 4


def test_a_bandwidth_is_kept(folder: Path, checkpoints: Checkpoints) -> None:
    clock = Clock()
    sender, told = uploader(MemoryStore(), folder, checkpoints, clock=clock, bandwidth_bytes_s=1000.0)
    sender.work_once()
    sent = next(event for event in told if isinstance(event, CopyVerified))
    assert sent.num_bytes / 1000 * 0.5 < clock.now_s <= sent.num_bytes / 1000


def test_a_checkpoint_that_is_gone_or_bad_is_given_up(folder: Path, checkpoints: Checkpoints) -> None:
    checkpoints.commit(snapshot(2), parent=None)
    path = checkpoints.root / name_of(2) / "state.json"
    path.write_bytes(path.read_bytes()[:-2] + b" }")
    store = MemoryStore()
    sender, told = uploader(store, folder, checkpoints)
    sender.offer(name_of(7), 1000, best=None)
    for _ in range(3):
        sender.work_once()
    dropped = {event.name for event in told if isinstance(event, CopyDropped)}
    assert dropped == {name_of(2), name_of(7)}
    assert [copy.name for copy in RemoteRun(store, "train").copies()] == [name_of(1)]


def test_other_files_are_mirrored_in_the_parts_that_changed(folder: Path, checkpoints: Checkpoints) -> None:
    store, clock = MemoryStore(), Clock()
    sender, _ = uploader(store, folder, checkpoints, clock=clock)
    clock.now_s = 1000.0
    while sender.work_once() == 0:
        pass
    assert store.objects["train/results.csv"].data == (folder / "results.csv").read_bytes()
    assert store.objects["train/weights/best.pt"].data == b"weights"
    log = folder / "steadyolo" / "events.jsonl"
    log.write_bytes(b"x" * (2**20) + b"y" * 10)
    clock.now_s += 61
    sender.work_once()
    first = store.objects["train/steadyolo/events.jsonl.part-00000"]
    with log.open("ab") as file:
        file.write(b"z" * 10)
    clock.now_s += 61
    sender.work_once()
    assert store.objects["train/steadyolo/events.jsonl.part-00000"] is first, "what did not change is not sent again"
    assert store.objects["train/steadyolo/events.jsonl.part-00001"].data == b"y" * 10 + b"z" * 10
    assert not [key for key in store.objects if key.endswith(("lock", "tiers.json"))]


def test_a_thread_does_all_this_by_itself(folder: Path, checkpoints: Checkpoints) -> None:
    store = MemoryStore()
    sender, _ = uploader(store, folder, checkpoints)
    sender.start()
    sender.flush()
    assert sender.drain(30)
    checkpoints.commit(snapshot(2), parent=None)
    sender.offer(name_of(2), 1000, best=None)
    sender.flush()
    assert sender.drain(30)
    sender.close()
    assert [copy.name for copy in RemoteRun(store, "train").copies()] == [name_of(1), name_of(2)]


def test_what_changes_while_a_flush_is_asked_for_is_sent_too(folder: Path, checkpoints: Checkpoints) -> None:
    """The end of a run: its last files are written while the mirror is being sent for another reason."""
    clock = Clock()
    store = Watched(MemoryStore())
    sender, _ = uploader(store, folder, checkpoints, clock=clock)
    sender.work_once()
    num_met = 0

    def finish(operation: str, key: str) -> None:
        nonlocal num_met
        if operation == "put" and key.endswith("mirror.json") and not num_met:
            num_met += 1
            (folder / "steadyolo" / "finished.json").write_text("{}")
            sender.flush()

    store.meet = finish
    clock.now_s = 1000.0
    sender.work_once()
    assert num_met, "nothing happened meanwhile, so this proves nothing"
    assert not sender.drain(0)
    while not sender.drain(0):
        sender.work_once()
    assert RemoteRun(store, "train").store.get("train/steadyolo/finished.json").data == b"{}"


def test_a_writer_with_a_successor_deletes_nothing(folder: Path, checkpoints: Checkpoints) -> None:
    """It claimed the run, took long to set up, and comes to delete what its successor may hold to be the best."""
    checkpoints.commit(snapshot(2), parent=None)
    store = MemoryStore()
    run = upload_all(store, folder, checkpoints)
    sender, told = uploader(store, folder, checkpoints, keep_last=1, place=lambda: run)
    take_place(store, "train", claim(2, "w2"), is_ours=True)
    sender.work_once()
    assert any(isinstance(event, TakenOver) for event in told)
    assert [copy.name for copy in run.copies()] == [name_of(1), name_of(2)]


def test_a_checkpoint_of_an_unknown_format_does_not_hold_up_the_others(folder: Path, checkpoints: Checkpoints) -> None:
    """A newer steadyolo was here: its checkpoint sorts as the newest, and can never be read."""
    checkpoints.commit(snapshot(9), parent=None)
    path = checkpoints.root / name_of(9) / "manifest.json"
    path.write_bytes(to_text({**from_text(path.read_bytes(), what="it"), "version": 2}))
    store = MemoryStore()
    sender, told = uploader(store, folder, checkpoints)
    sender.work_once()
    sender.work_once()
    assert [event.name for event in told if isinstance(event, CopyDropped)] == [name_of(9)]
    assert [copy.name for copy in RemoteRun(store, "train").copies()] == [name_of(1)]


def test_nothing_is_sent_where_a_disk_was_mounted(folder: Path, checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Else every checkpoint would be written to the disk below, which fills up."""
    root = tmp_path / "mounted"
    sender, told = uploader(FolderStore(root), folder, checkpoints)
    sender.work_once()
    root.rename(tmp_path / "unmounted")
    checkpoints.commit(snapshot(2), parent=None)
    sender.offer(name_of(2), 1000, best=None)
    assert sender.work_once() > 0
    assert "mounted" in next(event.remedy for event in told if isinstance(event, CopyFailed))
    assert not root.exists()


def test_a_mirror_whose_index_was_not_written_gives_back_what_the_last_one_knew(
    folder: Path, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    store = Watched(MemoryStore())
    upload_all(store, folder, checkpoints)
    before = (folder / "steadyolo" / "events.jsonl").read_bytes()
    with (folder / "steadyolo" / "events.jsonl").open("ab") as file:
        file.write(b'{"kind": "later"}\n')

    def die_before_the_index(operation: str, key: str) -> None:
        if operation == "put" and key.endswith("mirror.json"):
            raise Transient("cut", remedy="wait")

    store.meet = die_before_the_index
    sender, told = uploader(store, folder, checkpoints)
    sender.work_once()
    assert any(isinstance(event, CopyFailed) for event in told), "no fault happened, so this proves nothing"
    number, problems = restore_mirror(RemoteRun(store.store, "train"), tmp_path / "back")
    assert problems == []
    assert number == 3
    assert (tmp_path / "back" / "steadyolo" / "events.jsonl").read_bytes() == before


def test_a_file_that_cannot_be_kept_does_not_keep_the_others_back(
    folder: Path, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has a name that stores refuse, one may not be read: such as a plot that somebody else put there."""
    (folder / "a\\b.png").write_text("x")
    (folder / "locked.png").write_text("x")
    opened = Path.open

    def refuse(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.name == "locked.png":
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    store = MemoryStore()
    upload_all(store, folder, checkpoints)
    assert {"train/results.csv", "train/steadyolo/mirror.json"} <= store.objects.keys()
    assert not [key for key in store.objects if "png" in key]


def test_a_large_file_comes_back_from_its_pieces(
    folder: Path, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("steadyolo.vault.mirror.WHOLE_BYTES", 100)
    data = bytes(range(250))
    (folder / "predictions.json").write_bytes(data)
    run = upload_all(MemoryStore(), folder, checkpoints)
    (tmp_path / "there").mkdir()
    assert restore_mirror(run, tmp_path / "there")[1] == []
    assert (tmp_path / "there" / "predictions.json").read_bytes() == data
    assert (tmp_path / "there" / "results.csv").read_bytes() == (folder / "results.csv").read_bytes()


def test_a_writer_with_a_successor_does_not_go_on_mirroring(folder: Path, checkpoints: Checkpoints) -> None:
    """It is in the middle of a push: these objects have the same names for its successor."""
    store = Watched(MemoryStore())
    sender, told = uploader(store, folder, checkpoints)
    sender.work_once()

    def take_over(operation: str, key: str) -> None:
        if operation == "put" and key.endswith("results.csv"):
            store.meet = lambda operation, key: None
            take_place(store, "train", claim(2, "w2"), is_ours=True)

    store.meet = take_over
    sender.flush()
    sender.work_once()
    assert any(isinstance(event, TakenOver) for event in told)
    after = store.calls[store.calls.index(("after put", "train/results.csv")) :]
    assert not [key for operation, key in after if operation == "put"]

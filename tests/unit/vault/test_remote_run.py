from __future__ import annotations

from pathlib import Path

import pytest

from steadyolo.adapters.objects.sealed_store import SealedStore
from steadyolo.errors import DataLoss, UserError
from steadyolo.testing.memory_store import MemoryStore
from steadyolo.vault import copy as copy_module
from steadyolo.vault.checkpoints import Checkpoints
from steadyolo.vault.copy import Copy, StoredManifest, cut
from steadyolo.vault.manifest import Manifest
from steadyolo.vault.objects import Stored, Taken
from steadyolo.vault.remote_run import Fenced, RemoteRun, runs_in
from steadyolo.vault.session import take_place
from tests.faults.disks import is_same, snapshot
from tests.faults.stores import Watched, claim, name_of, run_folder

ONE = Copy(1, name_of(1))


@pytest.fixture(params=[1000, copy_module.PART_BYTES], ids=["many parts", "one part a file"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    monkeypatch.setattr(copy_module, "PART_BYTES", request.param)
    return MemoryStore()


@pytest.fixture
def run(store: MemoryStore) -> RemoteRun:
    return take_place(store, "train", claim(), is_ours=False)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return run_folder(tmp_path / "train", 1)


def upload(run: RemoteRun, checkpoints: Checkpoints, step: int = 1, token: int = 1) -> Copy:
    copy = Copy(token, name_of(step))
    run.upload(checkpoints.root / copy.name, copy, claim=claim())
    return copy


def fetched(run: RemoteRun, copy: Copy, folder: Path) -> Checkpoints:
    other = Checkpoints(folder / "checkpoints", writer_id="other")
    staged = other.fetching(copy.name, copy.token)
    other.adopt(copy.name, staged, run.fetch(copy, staged))
    return other


def test_what_is_uploaded_comes_back_byte_for_byte(run: RemoteRun, checkpoints: Checkpoints, tmp_path: Path) -> None:
    copy = upload(run, checkpoints)
    assert run.copies() == [copy]
    there = fetched(run, copy, tmp_path / "there")
    assert is_same(there.load(copy.name), snapshot(1))
    for file in (checkpoints.root / copy.name).iterdir():
        assert (there.root / copy.name / file.name).read_bytes() == file.read_bytes()


def test_a_copy_counts_only_with_its_manifest_which_is_put_last(store: MemoryStore, checkpoints: Checkpoints) -> None:
    watched = Watched(store)
    run = take_place(watched, "train", claim(), is_ours=False)
    upload(run, checkpoints)
    puts = [key for operation, key in watched.calls if operation == "put"]
    assert len(puts) >= 7
    assert puts[-1].endswith("/manifest.json")
    store.delete(puts[-1])
    assert run.copies() == []
    assert sorted(run.orphans()) == sorted(puts[:-1])


def test_an_upload_that_was_cut_short_goes_on_where_it_was(store: MemoryStore, checkpoints: Checkpoints) -> None:
    total = RemoteRun(MemoryStore(), "x")
    total.take(claim(), over=None)
    all_bytes = total.upload(checkpoints.root / name_of(1), ONE, claim=claim())
    puts = 0

    def fail_after_three(operation: str, key: str) -> None:
        nonlocal puts
        puts += operation == "put"
        if puts == 4:
            raise DataLoss("cut", remedy="go on")

    run = take_place(store, "train", claim(), is_ours=False)
    with pytest.raises(DataLoss, match="cut"):
        RemoteRun(Watched(store, fail_after_three), "train").upload(checkpoints.root / name_of(1), ONE, claim=claim())
    there = sum(len(stored.data) for key, stored in store.objects.items() if "/checkpoints/" in key)
    assert there
    assert run.copies() == []
    assert run.upload(checkpoints.root / name_of(1), ONE, claim=claim()) == all_bytes - there
    assert run.verify(ONE) == all_bytes


def test_a_fetch_that_was_cut_short_goes_on_where_it_was(
    run: RemoteRun, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    copy = upload(run, checkpoints)
    staged = tmp_path / "staged"
    run.fetch(copy, staged)
    largest = max(staged.iterdir(), key=lambda path: path.stat().st_size)
    largest.write_bytes(b"")  # this one was not written yet
    watched = Watched(run.store)
    RemoteRun(watched, run.name).fetch(copy, staged)
    read = {key.rpartition("/")[2].partition(".part")[0] for operation, key in watched.calls if operation == "get"}
    assert read == {"manifest.json", largest.name}
    assert largest.read_bytes() == (checkpoints.root / copy.name / largest.name).read_bytes()


def test_a_checkpoint_that_rots_in_the_run_folder_is_not_passed_on(run: RemoteRun, checkpoints: Checkpoints) -> None:
    path = checkpoints.root / name_of(1) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(DataLoss, match="not what was committed"):
        upload(run, checkpoints)
    assert run.copies() == []


# --- damage ---


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGE = {
    "flipped": flip,
    "truncated": lambda data: data[: len(data) // 2],
    "longer": lambda data: data + b"\0",
    "empty": lambda data: b"",
    "html": lambda data: b"<html><body>503 Service Unavailable</body></html>",
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_to_any_object_is_found_before_use(
    how: str, store: MemoryStore, run: RemoteRun, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    copy = upload(run, checkpoints)
    keys = [key for key in store.objects if copy.label in key]
    assert len(keys) >= 7
    for number, key in enumerate(keys):
        before = store.objects[key]
        store.objects[key] = Stored(data=DAMAGE[how](before.data), tag=before.tag)
        assert store.objects[key].data != before.data, "no fault happened, so this proves nothing"
        with pytest.raises(DataLoss):
            run.verify(copy)
        with pytest.raises(DataLoss):
            fetched(run, copy, tmp_path / f"there{number}")
        store.objects[key] = before
    run.verify(copy)


def test_objects_that_were_swapped_are_found(store: MemoryStore, run: RemoteRun, checkpoints: Checkpoints) -> None:
    checkpoints.commit(snapshot(2), parent=None)
    one, two = upload(run, checkpoints, 1), upload(run, checkpoints, 2)
    keys = [key for key in store.objects if one.label in key]
    for key in keys:
        other = key.replace(one.label, two.label)
        store.objects[key], store.objects[other] = store.objects[other], store.objects[key]
        if store.objects[key].data != store.objects[other].data:
            for copy in (one, two):
                with pytest.raises(DataLoss):
                    run.verify(copy)
        store.objects[key], store.objects[other] = store.objects[other], store.objects[key]


def test_an_object_that_is_gone_is_found(store: MemoryStore, run: RemoteRun, checkpoints: Checkpoints) -> None:
    copy = upload(run, checkpoints)
    for key in [key for key in store.objects if copy.label in key]:
        gone = store.objects.pop(key)
        with pytest.raises(DataLoss, match="not there"):
            run.verify(copy)
        store.objects[key] = gone


def test_digests_are_needed(
    store: MemoryStore, run: RemoteRun, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The control: without them a flipped bit comes back as if it had been saved."""
    copy = upload(run, checkpoints)
    key = next(key for key in store.objects if copy.label in key and "model" in key)
    store.objects[key] = Stored(data=flip(store.objects[key].data), tag="x")
    monkeypatch.setattr(
        RemoteRun, "_read_part", lambda self, copy, part: self.store.stream(self._key_of(copy, part.key))
    )
    fetched(run, copy, tmp_path / "there")


def test_a_manifest_of_a_newer_version_is_refused_clearly(
    store: MemoryStore, run: RemoteRun, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as later:
        later.setattr(StoredManifest, "VERSION", 2)
        copy = upload(run, checkpoints)
    with pytest.raises(UserError, match="version 2") as refused:
        run.verify(copy)
    assert "newer" in refused.value.remedy
    with monkeypatch.context() as later:
        later.setattr(Manifest, "VERSION", 2)
        with pytest.raises(UserError, match="version"):
            run.verify(copy)


# --- who writes ---


def test_a_name_that_another_run_has_gets_the_next_number(store: MemoryStore) -> None:
    assert take_place(store, "train", claim(), is_ours=False).name == "train"
    assert take_place(store, "train", claim(run_id="other"), is_ours=False).name == "train2"
    assert take_place(store, "train", claim(run_id="third"), is_ours=False).name == "train3"
    assert runs_in(store) == ["train", "train2", "train3"]
    with pytest.raises(UserError, match="another run"):
        take_place(store, "train2", claim(), is_ours=True)


def test_a_successor_fences_its_predecessor(run: RemoteRun, checkpoints: Checkpoints) -> None:
    upload(run, checkpoints)
    take_place(run.store, "train", claim(2, "w2"), is_ours=True)
    checkpoints.commit(snapshot(2), parent=None)
    with pytest.raises(Fenced, match="w2"):
        upload(run, checkpoints, 2)
    assert run.copies() == [ONE], "nothing of the predecessor's counts any more"
    with pytest.raises(Fenced):
        take_place(run.store, "train", claim(1, "w1"), is_ours=True)


def test_of_two_that_claim_at_once_one_wins(store: MemoryStore) -> None:
    def slip_in(operation: str, key: str) -> None:
        if operation == "put_if" and not slipped:
            slipped.append(take_place(store, "train", claim(writer_id="faster"), is_ours=False))

    slipped: list[RemoteRun] = []
    with pytest.raises(Taken):
        take_place(Watched(store, slip_in), "train", claim(), is_ours=False)
    assert slipped[0].owner().claim.writer_id == "faster"  # type: ignore[union-attr]


def test_a_place_that_was_emptied_is_not_written_to_in_silence(
    store: MemoryStore, run: RemoteRun, checkpoints: Checkpoints
) -> None:
    store.objects.clear()
    with pytest.raises(UserError, match="not there any more"):
        upload(run, checkpoints)


def test_copies_sort_by_session_first() -> None:
    older, newer = Copy(1, name_of(9)), Copy(2, name_of(3))
    assert sorted([newer, older]) == [older, newer]
    assert Copy.parse(older.label) == older
    assert Copy.parse("step-1.w2") is None


def test_parts_make_up_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_module, "PART_BYTES", 4)
    assert list(cut("a", 4)) == [("a", 0, 4)]
    assert list(cut("a", 0)) == [("a", 0, 0)]
    assert list(cut("a", 9)) == [("a.part-00000", 0, 4), ("a.part-00001", 4, 4), ("a.part-00002", 8, 1)]


def test_an_encrypted_run_without_its_key_is_a_clear_error(store: MemoryStore) -> None:
    """Not a claim that is damaged, which would be waited for, and then be removed as its remedy says."""
    take_place(SealedStore(store, b"k" * 32), "train", claim(), is_ours=False)
    with pytest.raises(UserError, match="is encrypted") as caught:
        RemoteRun(store, "train").owner()
    assert "key=FILE" in caught.value.remedy

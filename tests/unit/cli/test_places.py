from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from steadyolo.cli.places import all_copies, named_run, patient, pushed
from steadyolo.errors import UserError
from steadyolo.spec.run_spec import make_spec
from steadyolo.vault.folder_store import FolderStore
from steadyolo.vault.lock import RunLock
from steadyolo.vault.restore import restore_run
from steadyolo.vault.upkeep import verify_all
from tests.faults.disks import snapshot
from tests.faults.stores import name_of, run_folder, upload_all


def test_a_push_leaves_the_best_copy_where_it_is(tmp_path: Path) -> None:
    folder, url = tmp_path / "train", f"file://{tmp_path}/store"
    checkpoints = run_folder(folder, 1)
    ledger = replace(snapshot(1).state.ledger, best_tick=int(name_of(1).rpartition(".")[2]))
    for step in range(2, 6):
        later = snapshot(step)
        checkpoints.commit(replace(later, state=replace(later.state, ledger=ledger)), parent=None)
    spec = make_spec({}, {"store.url": url, "store.keep_last": "2"})
    (folder / "steadyolo" / "spec.json").write_text(json.dumps(spec.to_dict()))
    assert pushed(folder, timeout_s=60) == []
    assert [copy.name for copy in named_run(f"{url}/train").copies()] == [name_of(step) for step in (1, 4, 5)]


@pytest.fixture
def kept(tmp_path: Path) -> str:
    """URL of a run in a store, told that this is its store."""
    folder = tmp_path / "train"
    upload_all(
        FolderStore(tmp_path / "store"), folder, run_folder(folder, 1, 2), tiers={"store": f"file://{tmp_path}/store"}
    )
    return f"file://{tmp_path}/store/train"


def test_a_place_that_moved_is_told_to_the_run(kept: str, tmp_path: Path) -> None:
    """A disk that is mounted elsewhere now: the run goes on with it there, and not with a new one at the old path."""
    assert all_copies(kept).changes == {}
    (tmp_path / "store").rename(tmp_path / "moved")
    moved = all_copies(f"file://{tmp_path}/moved/train")
    assert moved.changes == {"store.url": f"file://{tmp_path}/moved"}
    assert [copy.name for copy in moved.copies["store"].copies()] == [name_of(1), name_of(2)]
    assert not (tmp_path / "store").exists(), "looking creates nothing"


def test_copies_whose_claim_was_removed_can_be_restored(kept: str, tmp_path: Path) -> None:
    (tmp_path / "store" / "train" / "steadyolo" / "writer.json").unlink()
    restored = restore_run(all_copies(kept).copies, tmp_path / "back", patience=patient())
    assert restored.found.snapshot is not None
    assert restored.found.snapshot.name == name_of(2)


def test_a_folder_in_use_is_not_restored_into(kept: str, tmp_path: Path) -> None:
    restore_run(all_copies(kept).copies, tmp_path / "back", patience=patient())
    with RunLock(tmp_path / "back" / "steadyolo").acquire(), pytest.raises(UserError, match="in use"):
        restore_run(all_copies(kept).copies, tmp_path / "back", patience=patient())


def test_names_with_signs_of_urls_name_the_run_that_they_name(tmp_path: Path) -> None:
    for name in ("run", "run#1", "run 1"):
        folder = tmp_path / name
        upload_all(FolderStore(tmp_path / "store"), folder, run_folder(folder, len(name)))
    for name in ("run", "run#1", "run 1"):
        assert [copy.name for copy in named_run(f"file://{tmp_path}/store/{name}").copies()] == [name_of(len(name))]


def test_verifying_reads_the_other_files_too(kept: str, tmp_path: Path) -> None:
    run = named_run(kept)
    assert verify_all(run).bad == ()
    best = tmp_path / "store" / "train" / "weights" / "best.pt"
    best.write_bytes(b"?" * best.stat().st_size)
    assert [bad.what for bad in verify_all(run).bad] == ["weights/best.pt"]

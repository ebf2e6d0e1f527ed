from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from steadyolo.errors import DataLoss, UserError
from steadyolo.state.snapshot import Snapshot
from steadyolo.vault.checkpoints import Checkpoints, is_committed
from steadyolo.vault.digested import to_text
from tests.faults.disks import is_same, snapshot

ONE, TWO, THREE = (snapshot(step).name for step in (1, 2, 3))


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "run" / "checkpoints", writer_id="w1")


def damage(checkpoints: Checkpoints, name: str) -> None:
    path = checkpoints.root / name / "state.json"
    path.write_bytes(path.read_bytes()[:-1])


def test_nothing_is_there_before_the_first_commit(checkpoints: Checkpoints) -> None:
    assert checkpoints.committed() == []
    assert checkpoints.newest_verified().snapshot is None
    assert checkpoints.sweep() == []
    assert not checkpoints.root.exists()


def test_what_is_committed_comes_back(checkpoints: Checkpoints) -> None:
    committed = checkpoints.commit(snapshot(1), parent=None)
    assert committed.name == ONE
    files = [path for path in (checkpoints.root / ONE).iterdir() if path.name != "manifest.json"]
    assert committed.num_bytes == sum(path.stat().st_size for path in files)
    assert committed.seconds > 0
    assert is_same(checkpoints.load(ONE), snapshot(1))


def test_an_empty_group_and_no_companions_come_back(checkpoints: Checkpoints) -> None:
    bare = replace(snapshot(1), tensors={"model": {}}, files={})
    checkpoints.commit(bare, parent=None)
    assert is_same(checkpoints.load(ONE), bare)


def test_the_same_snapshot_gives_the_same_files(tmp_path: Path) -> None:
    contents = []
    for folder in ("a", "b"):
        checkpoints = Checkpoints(tmp_path / folder, writer_id="w1")
        checkpoints.commit(snapshot(1), parent=None)
        contents.append({path.name: path.read_bytes() for path in (checkpoints.root / ONE).iterdir()})
    assert contents[0] == contents[1]


def test_the_manifest_names_the_parent(checkpoints: Checkpoints) -> None:
    checkpoints.commit(snapshot(2), parent=ONE)
    raw = json.loads((checkpoints.root / TWO / "manifest.json").read_bytes())
    assert (raw["parent"], raw["writer_id"], raw["step"]) == (ONE, "w1", 2)


def test_a_committed_name_is_left_alone(checkpoints: Checkpoints) -> None:
    first = checkpoints.commit(snapshot(1), parent=None)
    inode = (checkpoints.root / ONE).stat().st_ino
    again = checkpoints.commit(snapshot(1), parent=None)
    assert (checkpoints.root / ONE).stat().st_ino == inode
    assert again.num_bytes == first.num_bytes


def test_a_bad_one_of_the_same_name_is_set_aside(checkpoints: Checkpoints) -> None:
    for n in (1, 2):
        checkpoints.commit(snapshot(1), parent=None)
        damage(checkpoints, ONE)
        checkpoints.commit(snapshot(1), parent=None)
        assert (checkpoints.root / f"{ONE}.bad-{n}").is_dir()
    assert checkpoints.committed() == [ONE]
    checkpoints.verify(ONE)


def test_only_finished_folders_count(checkpoints: Checkpoints) -> None:
    checkpoints.commit(snapshot(2), parent=None)
    checkpoints.commit(snapshot(1), parent=None)
    for name in (f"{THREE}.partial-w0", f"{THREE}.bad-1", f"{THREE}.deleted-w0", "notes", THREE):
        (checkpoints.root / name).mkdir()
        if name != THREE:
            (checkpoints.root / name / "manifest.json").write_text("{}")
        assert not is_committed(checkpoints.root / name)
    assert checkpoints.committed() == [ONE, TWO]
    assert checkpoints.sweep() == [f"{THREE}.deleted-w0", f"{THREE}.partial-w0"]
    assert (checkpoints.root / f"{THREE}.bad-1").exists()


def test_falling_back_says_why(checkpoints: Checkpoints) -> None:
    for step in (1, 2, 3):
        checkpoints.commit(snapshot(step), parent=None)
    damage(checkpoints, TWO)
    (checkpoints.root / THREE / "manifest.json").unlink()
    found = checkpoints.newest_verified()
    assert found.snapshot is not None and found.snapshot.name == ONE
    assert [rejected.name for rejected in found.rejected] == [THREE, TWO]
    assert "manifest.json: expected a file, found none" in found.rejected[0].why
    assert "state.json: expected " in found.rejected[1].why and ", found " in found.rejected[1].why


def test_when_all_are_bad_there_is_none(checkpoints: Checkpoints) -> None:
    checkpoints.commit(snapshot(1), parent=None)
    damage(checkpoints, ONE)
    found = checkpoints.newest_verified()
    assert found.snapshot is None
    assert [rejected.name for rejected in found.rejected] == [ONE]
    with pytest.raises(DataLoss):
        checkpoints.load(ONE)


def test_a_newer_format_is_refused_and_left_alone(checkpoints: Checkpoints) -> None:
    checkpoints.commit(snapshot(1), parent=None)
    path = checkpoints.root / ONE / "manifest.json"
    body = {"version": 2, "steadyolo_version": "9.9"}
    path.write_bytes(to_text(body))
    [rejected] = checkpoints.newest_verified().rejected
    assert "written by steadyolo 9.9" in rejected.why
    with pytest.raises(UserError, match=r"written by steadyolo 9\.9"):
        checkpoints.commit(snapshot(1), parent=None)
    assert path.exists()


def test_deleting(checkpoints: Checkpoints) -> None:
    checkpoints.commit(snapshot(1), parent=None)
    checkpoints.delete(ONE)
    checkpoints.delete(ONE)
    assert list(checkpoints.root.iterdir()) == []


@pytest.mark.parametrize("name", ["", "..", "step-1", f"{ONE}.partial-w1", f"../{ONE}", f"{ONE}\n"])
def test_names_that_are_none(name: str, checkpoints: Checkpoints) -> None:
    for use in (checkpoints.delete, checkpoints.set_aside, checkpoints.load, checkpoints.verify):
        with pytest.raises(UserError, match="not a checkpoint's name"):
            use(name)
    with pytest.raises(UserError, match="not a checkpoint's name"):
        checkpoints.commit(replace(snapshot(1), name=name), parent=None)


@pytest.mark.parametrize("file", ["state.json", "manifest.json", "model.safetensors", "../out", "a/b", ""])
def test_companions_that_are_refused(file: str, checkpoints: Checkpoints) -> None:
    with pytest.raises(UserError, match="companion file"):
        checkpoints.commit(replace(snapshot(1), files={file: b""}), parent=None)
    assert list(checkpoints.root.iterdir()) == []


def test_a_writer_id_must_fit_a_file_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="writer_id"):
        Checkpoints(tmp_path, writer_id="a/b")


def test_tensors_do_not_change_on_the_way(checkpoints: Checkpoints) -> None:
    weight = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    one: Snapshot = replace(snapshot(1), tensors={"model": {"weight": weight}})
    checkpoints.commit(one, parent=None)
    assert torch.equal(checkpoints.load(ONE).tensors["model"]["weight"], weight)

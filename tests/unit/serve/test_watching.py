"""Which version in a folder is the newest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from steadyolo.errors import DataLoss
from steadyolo.serve.served_model import MANIFEST, ServedModel
from steadyolo.serve.watching import FolderVersions


def test_the_newest_whole_one_counts(served: Callable[..., ServedModel], tmp_path: Path) -> None:
    versions = FolderVersions(tmp_path)
    assert versions.newest() is None
    for number, name in enumerate(("b", "a")):
        shutil.copytree(served("detect").folder, tmp_path / name)
        os.utime(tmp_path / name / MANIFEST, (number, number))
    (tmp_path / "unfinished").mkdir()
    shutil.copytree(served("detect").folder, tmp_path / ".c.partial")
    newest = versions.newest()
    assert newest and newest.folder == tmp_path / "a"
    before = versions.newest(lambda model: model.folder == newest.folder)
    assert before and before.folder == tmp_path / "b", "one that was refused is passed over"
    (tmp_path / "a" / "model.bin").unlink()
    assert versions.newest() == before, "and one that is not whole"
    (tmp_path / "b" / "model.bin").unlink()
    with pytest.raises(DataLoss, match=r"a/model\.bin is missing"):
        versions.newest()


def test_a_link_is_followed_once(served: Callable[..., ServedModel], tmp_path: Path) -> None:
    shutil.copytree(served("detect").folder, tmp_path / "v1")
    (tmp_path / "current").symlink_to("v1")
    newest = FolderVersions(tmp_path / "current").newest()
    assert newest and newest.folder == tmp_path / "v1", "the link may lead elsewhere when it is loaded again"


def test_a_folder_may_be_a_model_itself(served: Callable[..., ServedModel]) -> None:
    newest = FolderVersions(served("detect").folder).newest()
    assert newest and newest.version == served("detect").version

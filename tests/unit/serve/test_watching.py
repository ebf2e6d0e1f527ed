"""Which version in a folder is the newest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from steadyolo.serve.served_model import MANIFEST, ServedModel
from steadyolo.serve.watching import FolderVersions


def test_the_newest_whole_one_counts(served: Callable[..., ServedModel], tmp_path: Path) -> None:
    versions = FolderVersions(tmp_path)
    assert versions.newest() is None
    for number, name in enumerate(("b", "a")):
        shutil.copytree(served("detect").folder, tmp_path / name)
        os.utime(tmp_path / name / MANIFEST, (number, number))
    (tmp_path / "unfinished").mkdir()
    newest = versions.newest()
    assert newest and newest.folder == tmp_path / "a"


def test_a_folder_may_be_a_model_itself(served: Callable[..., ServedModel]) -> None:
    newest = FolderVersions(served("detect").folder).newest()
    assert newest and newest.version == served("detect").version

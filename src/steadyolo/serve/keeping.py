"""Puts an exported model where it is served from: whole and durable under its name, or not there."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from steadyolo.errors import UserError
from steadyolo.serve.served_model import MANIFEST, ServedFile, ServedModel, digest_of
from steadyolo.vault.disk import LOCAL_DISK, ensure_folder

_STALE_S = 3600.0  # a folder that is still being filled is younger
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, to be filled and handed to `keep_served`; removed when that did not happen.

    Raises: UserError where `folder` is something else than a served model.
    """
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} is there and is no served model", remedy="remove it, or give another out=FOLDER")
    ensure_folder(folder.parent.absolute())
    _sweep(folder)
    staged = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.partial")
    staged.mkdir()
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def keep_served(staged: Path, folder: Path, values: Mapping[str, Any]) -> ServedModel:
    """Give the files in `staged` a manifest of `values`, and adopt them. Raises: as `adopt_served`."""
    files = {
        path.name: ServedFile(num_bytes=path.stat().st_size, sha256=digest_of(path))
        for path in sorted(staged.iterdir())
    }
    model = ServedModel(folder=staged, version="", files=files, **values)
    return adopt_served(staged, folder, json.dumps(model.to_manifest(), indent=1).encode() + b"\n")


def adopt_served(staged: Path, folder: Path, data: bytes) -> ServedModel:
    """Give the files in `staged` the manifest `data`, and the name `folder`, in the place of what is there.

    When this returns they outlive a loss of power; a reader sees the old model or the new. Raises: OSError.
    """
    for path in staged.iterdir():
        _sync(path)
    LOCAL_DISK.write(staged / MANIFEST, [data])
    LOCAL_DISK.sync_folder(staged)
    if folder.exists():
        _exchange(staged, folder)
    else:
        LOCAL_DISK.rename(staged, folder)
    LOCAL_DISK.sync_folder(folder.absolute().parent)
    return ServedModel.from_manifest(data, folder)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _exchange(staged: Path, folder: Path) -> None:
    """Let the two folders change names, at once where the kernel and the file system know how."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    paths = os.fsencode(staged), os.fsencode(folder)
    if rename is not None and rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
        return
    before = folder.with_name(f"{staged.name}.before")
    folder.rename(before)
    staged.rename(folder)
    before.rename(staged)


def _sweep(folder: Path) -> None:
    """Remove what killed exports of the same model left behind."""
    for left_behind in folder.parent.glob(f".{folder.name}.*.partial*"):
        with suppress(OSError):
            if time.time() - left_behind.stat().st_mtime > _STALE_S:
                shutil.rmtree(left_behind)

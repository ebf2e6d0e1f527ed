"""Tells whether a dataset is still the one that a run was made from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def fingerprint(files: Iterable[str], labels: Iterable[Mapping[str, Any]], names: Mapping[int, str]) -> str:
    """SHA-256 over class names, image names (relative to their common root), image sizes in bytes, and parsed labels.

    Image contents are not read: a changed image of exactly the same size in bytes is not noticed.
    """
    digest = hashlib.sha256()
    digest.update(repr(sorted(names.items())).encode())
    for file, label in zip(files, labels, strict=True):
        path = Path(file)
        digest.update(f"{path.parent.name}/{path.name}:{path.stat().st_size};".encode())
        for name in sorted(label):
            _update(digest, label[name])
    return digest.hexdigest()


def _update(digest: Any, value: Any) -> None:
    if isinstance(value, np.ndarray):
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, list | tuple):
        for item in value:
            _update(digest, item)
    elif isinstance(value, int | float | bool):
        digest.update(repr(value).encode())

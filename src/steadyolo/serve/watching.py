"""Where new versions of a model come from. A registry plugs in here: whatever has a newest version will do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from steadyolo.serve.served_model import MANIFEST, ServedModel, open_served


class Versions(Protocol):
    """Called in a thread, now and then."""

    def newest(self) -> ServedModel | None:
        """The version that should answer; None while there is none. Raises: SteadyError where that cannot be told."""


class FolderVersions:
    """A folder in which served models appear, or that is one itself. The newest is the one whose manifest came last.

    A manifest is written last, so that a folder that is still being copied does not count. Digests are checked by
    whoever loads a version.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def newest(self) -> ServedModel | None:
        found: list[tuple[int, str]] = []
        for manifest in (self._folder / MANIFEST, *self._folder.glob(f"*/{MANIFEST}")):
            try:
                found.append((manifest.stat().st_mtime_ns, str(manifest.parent)))
            except OSError:
                continue  # it is being removed
        return open_served(Path(max(found)[1]), verify=False) if found else None


class FoundVersions:
    """A name whose content may change, such as a store's URL: what it leads to now."""

    def __init__(self, name: str, find: Callable[[str], ServedModel]) -> None:
        self._name, self._find = name, find

    def newest(self) -> ServedModel | None:
        return self._find(self._name)

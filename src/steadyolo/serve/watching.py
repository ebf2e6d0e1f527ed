"""Where new versions of a model come from. A registry plugs in here: whatever has a newest version will do."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from steadyolo.errors import SteadyError
from steadyolo.serve.served_model import MANIFEST, ServedModel, open_served

IsRefused = Callable[[ServedModel], bool]  # was it tried, and found wanting?
_log = logging.getLogger(__name__)


class Versions(Protocol):
    """Called in a thread, now and then."""

    def newest(self, is_refused: IsRefused) -> ServedModel | None:
        """The version that should answer; None while there is none.

        Raises: SteadyError or OSError where that cannot be told.
        """


class FolderVersions:
    """A folder in which served models appear, or that is one itself. The newest is the one whose manifest came last.

    A manifest is written last, so that a folder that is still being copied does not count, and neither does one whose
    name begins with a dot. One that is not whole, or was refused, is passed over for the one before it. Digests are
    checked by whoever loads a version.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._told = ""

    def newest(self, is_refused: IsRefused = lambda _: False) -> ServedModel | None:
        found: list[tuple[int, str]] = []
        for manifest in (self._folder / MANIFEST, *self._folder.glob(f"[!.]*/{MANIFEST}")):
            try:
                found.append((manifest.stat().st_mtime_ns, str(manifest.parent)))
            except OSError:
                continue  # it is being removed
        first: SteadyError | OSError | None = None
        for _, folder in sorted(found, reverse=True):
            try:
                model = open_served(Path(folder).resolve(), verify=False)
                if not is_refused(model):
                    self._tell(first)
                    return model
            except (SteadyError, OSError) as error:
                first = first or error
        if first is not None:
            raise first
        return None

    def _tell(self, error: SteadyError | OSError | None) -> None:
        """Why a version is passed over, once."""
        if (told := str(error or "")) != self._told:
            self._told = told
            if told:
                _log.warning("a version is passed over: %s", told)


class FoundVersions:
    """A name whose content may change, such as a store's URL: what it leads to now."""

    def __init__(self, name: str, find: Callable[[str], ServedModel]) -> None:
        self._name, self._find = name, find

    def newest(self, is_refused: IsRefused = lambda _: False) -> ServedModel | None:
        return self._find(self._name)


def signature(model: ServedModel) -> object:
    """Another one when a file was written again: a copy that was not whole may be now. Raises: OSError."""
    return model.version, tuple((model.folder / name).stat().st_mtime_ns for name in model.files)

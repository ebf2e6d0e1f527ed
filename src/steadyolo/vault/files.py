"""Small files that are replaced whole: results, specs and exported weights; and the folder of a run that is ours."""

from __future__ import annotations

from pathlib import Path

from steadyolo.vault.disk import LOCAL_DISK, Disk

OURS_FOLDER = "steadyolo"  # in a run's folder, and in each of its copies: what is ours


def replace_file(path: Path, data: bytes | memoryview, *, disk: Disk = LOCAL_DISK) -> None:
    """Give `path` the content `data`, durably; a reader or a crash sees the old content or the new, never a mix.

    One writer at a time for each path: the temporary name is fixed, so that the next one clears what a killed one left.
    Raises: `OSError`; the old content is then still there.
    """
    temporary = path.with_name(f".{path.name}.partial")
    disk.remove(temporary)
    disk.write(temporary, [data])
    disk.rename(temporary, path)
    disk.sync_folder(path.parent)

"""Looks at a dataset before training does: what cannot be used is refused or left out, counted and listed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from ultralytics.data.utils import check_image

from steadyolo.errors import UserError
from steadyolo.vault.files import replace_file

_NUM_LISTED = 10
_MAY_BE_16_BIT = {".png", ".tif", ".tiff"}


@dataclass(frozen=True, slots=True)
class Problems:
    """Files that cannot be learned from, each with the reason: because of the image itself, or of its labels."""

    images: dict[str, str]
    labels: dict[str, str]

    @property
    def all(self) -> dict[str, str]:
        return {**self.images, **self.labels}


def problems_of(lost: list[str], scan: Callable[[str], str]) -> Problems:
    """Why Ultralytics' scan left out each file of `lost`. `scan` gives the message that it has for a file."""
    images: dict[str, str] = {}
    labels: dict[str, str] = {}
    for file in lost:
        try:
            check_image(file)
        except Exception as error:  # noqa: BLE001  # any file may be among images; what cannot be read is listed
            images[file] = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        else:
            labels[file] = scan(file).rpartition("ignoring corrupt image/label: ")[2] or "its labels cannot be read"
    return Problems(images, labels)


def sixteen_bit(files: list[str]) -> dict[str, str]:
    """Images of more than 8 bits a channel: training would silently keep the upper half of their range."""
    found = {}
    for file in files:
        if Path(file).suffix.lower() in _MAY_BE_16_BIT:
            with Image.open(file) as image:
                if image.mode.startswith(("I", "F")):
                    found[file] = f"{image.mode} pixels: more than 8 bits a channel"
    return found


def refuse_labels(problems: dict[str, str]) -> UserError:
    """The error for labels that cannot be used."""
    return UserError(
        f"{len(problems)} images have labels that cannot be used:\n{listed(problems)}",
        remedy="correct these label files, or pass data.bad_labels=skip to train without those images",
    )


def listed(problems: dict[str, str]) -> str:
    """The first problems, a line each, and how many more there are."""
    lines = [f"    {file}: {why}" for file, why in list(problems.items())[:_NUM_LISTED]]
    return "\n".join([*lines, f"    and {len(problems) - _NUM_LISTED} more"] if len(problems) > _NUM_LISTED else lines)


@contextmanager
def translated(data: Any) -> Iterator[None]:
    """Turn what Ultralytics raises about a dataset into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except (RuntimeError, ValueError, SyntaxError, TypeError, AssertionError, OSError, yaml.YAMLError) as error:
        text = " ".join(str(error).replace("❌", "").replace("⚠️", "").split())
        raise UserError(
            f"the data {data} cannot be used: {text}",
            remedy="check that it exists and names train, val and names, and that both splits hold labelled images",
        ) from error


def resolve_yaml(data: Path, folder: Path) -> Path:
    """A data yaml whose `path` is absolute, so that it means the same from every working folder.

    A relative `path` is taken from the yaml's own folder where the images are there; otherwise the yaml is left to
    Ultralytics' own rules. The resolved copy is written to `folder`.
    """
    try:
        content = yaml.safe_load(data.read_text(encoding="utf-8", errors="ignore"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(
            f"the data yaml {data} cannot be read: {' '.join(str(error).split())}", remedy="correct its YAML"
        ) from None
    if not isinstance(content, dict):
        raise UserError(
            f"the data yaml {data} is not a mapping", remedy="write train:, val: and names: entries into it"
        )
    root = Path(str(content.get("path") or "."))
    beside = (data.parent / root).resolve()
    first = content.get("train")
    first = first[0] if isinstance(first, list) and first else first
    if root.is_absolute() or not isinstance(first, str) or not (beside / first).exists():
        return data
    resolved = folder / "data.yaml"
    text = yaml.safe_dump({**content, "path": str(beside)}, sort_keys=False, allow_unicode=True)
    replace_file(resolved, text.encode())
    return resolved

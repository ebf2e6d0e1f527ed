"""Finds what describes a mirrored data set, and makes it mean the mirror wherever it was written for."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from steadyolo.errors import UserError
from steadyolo.vault.files import replace_file

YAML_SUFFIXES = (".yaml", ".yml")
_NEEDED = ("train", "val", "validation")
_SPLITS = (*_NEEDED, "test", "minival")


def find_description(keys: Collection[str], *, named: str | None, wants_folder: bool, url: str) -> str | None:
    """The key of the data yaml; None where the folder itself is what Ultralytics takes, as it is for classification.

    Raises: UserError when neither is there, or when several yamls could be meant.
    """
    if named is not None:
        if named not in keys:
            raise UserError(f"{url} holds no {named}", remedy="check the URL; it may name the folder instead")
        return named
    has_train = any(key.startswith("train/") for key in keys)
    top = sorted(key for key in keys if "/" not in key and key.endswith(YAML_SUFFIXES))
    if wants_folder or (has_train and not top):
        if not has_train:
            raise UserError(f"{url} has no folder train", remedy="store the images as train/CLASS/… and val/CLASS/…")
        return None
    if "data.yaml" in top:
        return "data.yaml"
    if len(top) == 1:
        return top[0]
    if top:
        raise UserError(f"{url} holds several data yamls: {', '.join(top)}", remedy=f"name one: data={url}/{top[0]}")
    raise UserError(
        f"{url} holds no data yaml", remedy="store one there as data.yaml; unpack archives before they are stored"
    )


def resolve_description(files: Path, key: str, resolved: Path) -> Path:
    """Write a copy of the data yaml whose splits are absolute paths inside `files`, and return its path.

    A split is looked for under `path`, then under ever shorter tails of it: what was /disk/datasets/pcb on the machine
    that it was written on is this folder here. `download` is left out: everything is here, and nothing of it is run.
    Raises: UserError for a yaml that cannot be read, and for a train or val that is not in the data set.
    """
    try:
        content = yaml.safe_load((files / key).read_text(encoding="utf-8", errors="ignore"))
    except yaml.YAMLError as error:
        raise UserError(
            f"{key} of the data set cannot be read: {' '.join(str(error).split())}", remedy="correct its YAML"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{key} of the data set is no mapping", remedy="write train:, val: and names: entries into it")
    homes = dict.fromkeys([(files / key).parent, files])
    roots = [home.joinpath(*tail) for tail in _tails(str(content.get("path") or "")) for home in homes]
    content = {name: value for name, value in content.items() if name != "download"}
    for split in content.keys() & _SPLITS:
        content[split] = _placed(content[split], split, roots, key)
    first = content.get("train")
    first = first[0] if isinstance(first, list) and first else first
    is_under = (root for root in roots if isinstance(first, str) and Path(first).is_relative_to(root))
    content["path"] = str(next(is_under, files))
    replace_file(resolved, yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())
    return resolved


def _placed(value: Any, split: str, roots: list[Path], key: str) -> Any:
    """The entry of a split with absolute paths; what is neither a text nor a list of texts stays as it is."""
    if isinstance(value, list):
        return [_placed(item, split, roots, key) for item in value]
    if not isinstance(value, str) or not value:
        return value
    whole, *shorter = _tails(value)
    tails = [whole, *shorter[:-1]] if value.startswith("/") else [whole]
    places = [root.joinpath(*tail) for tail in tails for root in roots]
    place = next((place for place in places if place.exists()), None)
    if place is None and split in _NEEDED:
        raise UserError(
            f"{key} of the data set names {split}: {value}, which is not stored there",
            remedy=f"store these files too, or correct {split}: in {key}",
        )
    return str(place or places[-1])


def _tails(path: str) -> Iterator[tuple[str, ...]]:
    """The parts of a path, without those that lead upwards, then ever fewer of them: a/b/c, b/c, c, nothing."""
    parts = tuple(part for part in PurePosixPath(posixpath.normpath(path)).parts if part not in {"/", "//", ".", ".."})
    return (parts[at:] for at in range(len(parts) + 1))

"""Served models in stores: `<name>.served/manifest.json`, and beside it the files of each version in a folder of it.

The manifest is put last and read first, so that a reader sees a whole model, the old one or the new.
"""

from __future__ import annotations

import hashlib
import shutil
from contextlib import suppress
from pathlib import Path

from steadyolo.errors import DataLoss, UserError
from steadyolo.serve.keeping import adopt_served, staging
from steadyolo.serve.served_model import MANIFEST, SUFFIX, ServedFile, ServedModel, open_served, version_of
from steadyolo.vault.objects import Absent, ObjectStore
from steadyolo.vault.patience import Patience

_NUM_KEPT = 3  # versions of one model: in the cache; and in the store, where somebody may be fetching the one before


def send_served(store: ObjectStore, name: str, model: ServedModel, *, patience: Patience) -> None:
    """Keep `model` as `name` in `store`. When this returns it is there, whole and confirmed.

    The version before stays, for those who are fetching it. Raises: `Transient`, `UserError`; DataLoss where the
    model's files are not what was exported.
    """
    open_served(model.folder)
    manifest = (model.folder / MANIFEST).read_bytes()
    before = _version_in(store, name, patience)
    for file in model.files:
        data = (model.folder / file).read_bytes()
        patience.keep_trying(lambda file=file, data=data: store.put(f"{name}/{model.version}/{file}", data))  # type: ignore[misc]
    patience.keep_trying(lambda: store.put(f"{name}/{MANIFEST}", manifest))
    kept = {model.version, before}
    for listed in patience.keep_trying(lambda: store.list(f"{name}/")):
        version, _, file = listed.key.removeprefix(f"{name}/").partition("/")
        if file and version not in kept:
            store.delete(listed.key)


def fetch_served(store: ObjectStore, name: str, cache: Path, *, patience: Patience) -> ServedModel:
    """The model that is kept as `name` in `store` now, in a folder of `cache`; what is there already is used.

    Raises: UserError where there is none; DataLoss where a file in the store is missing or not what was sent;
    `Transient` when the store fails for too long.
    """
    url = f"{store.url.rstrip('/')}/{name}"
    for tries_left in (1, 0):
        manifest = _manifest_in(store, name, patience)
        if manifest is None:
            raise UserError(f"{url} is not a served model", remedy=f"put one there: steadyolo export MODEL out={url}")
        model = ServedModel.from_manifest(manifest, Path(url))
        place = cache / hashlib.sha256(url.encode()).hexdigest()[:12] / model.version / f"{model.name}{SUFFIX}"
        with suppress(UserError, DataLoss):
            return open_served(place)
        shutil.rmtree(place, ignore_errors=True)  # what is there is no good
        try:
            with staging(place) as staged:
                for file, entry in model.files.items():
                    key = f"{name}/{model.version}/{file}"
                    patience.keep_trying(lambda key=key, path=staged / file: _fetch(store, key, path))  # type: ignore[misc]
                    _check(staged / file, entry, f"{url}/{model.version}/{file}")
                found = adopt_served(staged, place, manifest)
        except Absent:
            if tries_left:  # replaced twice while we looked: what is there now is another
                continue
            raise DataLoss(f"a file of {url} is not there", remedy="export the model there again") from None
        _make_room(place.parent)
        return found
    raise AssertionError("unreachable")


def _manifest_in(store: ObjectStore, name: str, patience: Patience) -> bytes | None:
    try:
        return bytes(patience.keep_trying(lambda: store.get(f"{name}/{MANIFEST}")).data)
    except Absent:
        return None


def _version_in(store: ObjectStore, name: str, patience: Patience) -> str | None:
    manifest = _manifest_in(store, name, patience)
    return version_of(manifest) if manifest is not None else None


def _fetch(store: ObjectStore, key: str, path: Path) -> None:
    with path.open("wb") as file:
        for piece in store.stream(key):
            file.write(piece)


def _check(path: Path, entry: ServedFile, key: str) -> None:
    from steadyolo.serve.served_model import digest_of

    if path.stat().st_size != entry.num_bytes or digest_of(path) != entry.sha256:
        raise DataLoss(f"{key} is not what was sent", remedy="export the model there again, or look at that store")


def _make_room(version: Path) -> None:
    """Keep the last few versions of a model in the cache."""
    others = sorted((one for one in version.parent.iterdir() if one != version), key=lambda one: one.stat().st_mtime)
    for old in others[: max(0, len(others) - (_NUM_KEPT - 1))]:
        shutil.rmtree(old, ignore_errors=True)

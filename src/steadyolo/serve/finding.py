"""`find_served`: the served model that a name on a command line or in a script means."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from steadyolo.errors import UserError
from steadyolo.serve.served_model import MANIFEST, SUFFIX, ServedModel, digest_of, open_served
from steadyolo.spec.location import is_location
from steadyolo.vault.files import OURS_FOLDER

Fetch = Callable[[str], ServedModel]  # of a store's URL; raises as `fetch_served`
_GRAPHS = {".onnx", ".xml", ".bin", ".engine"}


def find_served(name: str | Path, *, fetch: Fetch | None = None, verify: bool = True) -> ServedModel:
    """The served model called `name`: its folder, weights or a run that have one beside or inside, or a store's URL.

    With `verify`, every byte was read and is what was exported. A URL takes `fetch`, which `cli` hands in.
    Raises: UserError saying what `name` is instead, and what to do; DataLoss where files are missing or changed.
    """
    if isinstance(name, str) and is_location(name):
        if fetch is None:
            raise UserError(f"{name} is not on this machine", remedy="name a folder of this machine")
        return fetch(name)
    path = Path(name).expanduser()
    folder = next((one for one in _places(path) if (one / MANIFEST).is_file()), None)
    if folder is None:
        raise _refusal(path)
    model = open_served(folder, verify=verify)
    if path.suffix == ".pt" and path.is_file():
        _check_source(path, model)
    return model


def _places(path: Path) -> Iterator[Path]:
    """Where the served model may be, the likeliest first."""
    if path.suffix == ".pt":
        yield path.with_suffix(SUFFIX)
        return
    yield path
    yield path / "weights" / f"best{SUFFIX}"
    if path.name:
        yield path.with_name(f"{path.name}{SUFFIX}")


def _check_source(weights: Path, model: ServedModel) -> None:
    """Raise UserError where `weights` were changed since they were exported."""
    is_older = weights.stat().st_mtime < (model.folder / MANIFEST).stat().st_mtime
    if not is_older and digest_of(weights) != model.source.sha256:
        raise UserError(
            f"{weights} was changed since {model.folder} was exported from it",
            remedy=f"export it again: steadyolo export {weights}; or name {model.folder} to use that all the same",
        )


def _refusal(path: Path) -> UserError:
    if path.suffix == ".pt":
        is_there = path.is_file()
        what = "holds weights for training, which are not served as they are" if is_there else "is not there"
        return UserError(
            f"{path} {what}, and there is no {path.with_suffix(SUFFIX).name} beside it",
            remedy=f"export it once: steadyolo export {path}" if is_there else "check the name",
        )
    if path.is_file():
        known = path.suffix in _GRAPHS
        return UserError(
            f"{path} is {'a graph' if known else 'a file'} without the manifest of a served model",
            remedy="name the folder that steadyolo export wrote"
            + (f": {path.parent}" if (path.parent / MANIFEST).is_file() else f", whose name ends in {SUFFIX}"),
        )
    if not path.exists():
        return UserError(f"{path} is not there", remedy=f"name a served model, such as best{SUFFIX}, or a run")
    if (path / "weights" / "best.pt").is_file() or (path / OURS_FOLDER).is_dir():
        return UserError(f"{path} is a run that has not been exported", remedy=f"run steadyolo export {path}")
    inside = sorted(one.name for one in path.glob(f"*{SUFFIX}"))[:5]
    return UserError(
        f"{path} is neither a served model nor a run: it has no {MANIFEST}",
        remedy=f"name one of the served models in it: {', '.join(inside)}"
        if inside
        else f"name a folder that steadyolo export wrote, whose name ends in {SUFFIX}",
    )

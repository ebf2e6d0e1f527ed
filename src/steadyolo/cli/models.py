"""From a name on the command line to a served model, or to the weights that one is made from; stores included."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from steadyolo.errors import UserError
from steadyolo.serve.finding import find_served
from steadyolo.serve.served_model import SUFFIX, ServedModel, Source, digest_of
from steadyolo.spec.location import Location, is_location, parse_location
from steadyolo.vault.files import OURS_FOLDER

if TYPE_CHECKING:
    from steadyolo.vault.remote_run import RemoteRun

BEST = "weights/best.pt"


def find_model(name: str | Path, *, verify: bool = True) -> ServedModel:
    """The served model called `name`, on this machine or in a store. Raises: as `find_served` and `fetch_served`."""
    return find_served(name, fetch=fetched, verify=verify)


def fetched(url: str) -> ServedModel:
    """The served model at `url`, in this user's cache. Raises: as `fetch_served`."""
    from steadyolo.cli.places import open_place, patient
    from steadyolo.data.cache import cache_root
    from steadyolo.serve.stored import fetch_served

    location = served_location(url)
    cache = cache_root(os.environ) / "served"
    return fetch_served(open_place(location.parent).store, location.name, cache, patience=patient())


def sent(model: ServedModel, url: str) -> None:
    """Keep `model` at `url`. Raises: as `send_served`."""
    from steadyolo.cli.places import open_place, patient
    from steadyolo.serve.stored import send_served

    location = served_location(url)
    send_served(open_place(location.parent).store, location.name, model, patience=patient())


def served_location(url: str) -> Location:
    """Where a served model is kept. Raises: UserError for a name that does not end as theirs do."""
    location = parse_location(url)
    if not location.name.endswith(SUFFIX) or location.name == SUFFIX:
        raise UserError(
            f"{url} does not name a served model",
            remedy=f"use a name that ends in {SUFFIX}, such as {location.inside(f'best{SUFFIX}')}",
        )
    return location


@dataclass(frozen=True, slots=True)
class Chosen:
    """Weights on this machine, where they came from, and the folder that their served model goes to unless told.

    `tensors` are those of a checkpoint, which take the place of those in `weights`.
    """

    weights: Path
    source: Source
    folder: Path
    tensors: Path | None = None


@contextmanager
def chosen_weights(name: str, *, step: int | None = None) -> Iterator[Chosen]:
    """The weights that `name` means: a `.pt`, the best of a run, or the same in a store, as long as this lasts.

    With `step`, those of a run folder's checkpoint, in full precision. Raises: UserError for a name that means none;
    DataLoss for a checkpoint that does not verify.
    """
    if step is not None:
        yield _of_checkpoint(Path(name), step)
    elif is_location(name):
        with _brought(name) as chosen:
            yield chosen
    elif Path(name).is_dir():
        yield _of_run(Path(name))
    elif Path(name).is_file():
        path = Path(name)
        yield Chosen(path, Source(name=path.name, sha256=digest_of(path)), path.with_suffix(SUFFIX))
    else:
        raise UserError(f"{name} is not there", remedy="name weights (.pt), a run folder or a store's URL")


def _of_run(run: Path) -> Chosen:
    weights = run / BEST
    if not weights.is_file():
        is_run = (run / OURS_FOLDER).is_dir()
        raise UserError(
            f"{run} has no {BEST}" + ("; it appears when the first epoch was scored" if is_run else ""),
            remedy="name weights (.pt) or a run folder; `steadyolo runs ls` lists those there are",
        )
    step, epoch = _best_of(run)
    source = Source(name=run.name, sha256=digest_of(weights), run=str(run.resolve().name), step=step, epoch=epoch)
    return Chosen(weights, source, weights.with_suffix(SUFFIX))


def _of_checkpoint(run: Path, step: int) -> Chosen:
    from steadyolo.vault.checkpoints import Checkpoints

    checkpoints = Checkpoints(run / OURS_FOLDER / "checkpoints", writer_id="export")
    there = {int(name.removeprefix("step-").partition(".")[0]): name for name in checkpoints.committed()}
    if step not in there:
        known = ", ".join(map(str, there)) or "none"
        raise UserError(f"{run} has no checkpoint of step {step}", remedy=f"choose one that is there: {known}")
    checkpoints.verify(there[step])
    weights, tensors = run / "weights" / "last.pt", checkpoints.root / there[step] / "ema.safetensors"
    source = Source(name=there[step], sha256=digest_of(tensors), run=str(run.resolve().name), step=step)
    return Chosen(weights, source, weights.with_name(f"step-{step}{SUFFIX}"), tensors)


def _best_of(run: Path) -> tuple[int | None, int | None]:
    """The step and the epoch of a run's best weights, as far as its newest checkpoint knows them."""
    from steadyolo.vault.checkpoints import STATE, Checkpoints

    checkpoints = Checkpoints(run / OURS_FOLDER / "checkpoints", writer_id="export")
    for name in reversed(checkpoints.committed()):
        best = checkpoints.best_known_to(name)
        return _told((checkpoints.root / name / STATE).read_bytes(), best)
    return None, None


def _told(state: bytes, best: str | None) -> tuple[int | None, int | None]:
    """Step and epoch: one from the name of the best checkpoint, the other from a newer one's ledger."""
    import json

    step = int(best.removeprefix("step-").partition(".")[0]) if best else None
    try:
        return step, int(json.loads(state)["state"]["ledger"]["best_epoch"]) or None
    except (ValueError, KeyError, TypeError):
        return step, None


@contextmanager
def _brought(url: str) -> Iterator[Chosen]:
    """Weights from a store: an object called `….pt`, or the best of a run. Nothing else of the run is fetched."""
    import tempfile

    from steadyolo.cli.places import named_run, open_place, patient
    from steadyolo.vault.objects import Absent

    location = parse_location(url)
    with tempfile.TemporaryDirectory(prefix="steadyolo-export-") as temporary:
        run: RemoteRun | None = None
        if location.name.endswith(".pt"):
            store = open_place(location.parent).store
            try:
                data = patient().keep_trying(lambda: store.get(location.name)).data
            except Absent:
                raise UserError(f"{url} is not there", remedy="check the URL") from None
            weights = Path(temporary) / location.name
        else:
            from steadyolo.vault.mirror import read_mirrored

            run = named_run(url)
            data = patient().keep_trying(lambda: read_mirrored(run, BEST))
            weights = Path(temporary) / f"{run.name}.pt"
        weights.write_bytes(data)
        step, epoch = _best_of_remote(run) if run is not None else (None, None)
        name = str(Location(scheme=location.scheme, bucket=location.bucket, path=location.path))
        source = Source(name=name, sha256=digest_of(weights), run=run.name if run else None, step=step, epoch=epoch)
        yield Chosen(weights, source, Path(f"{weights.stem}{SUFFIX}"))


def _best_of_remote(run: RemoteRun) -> tuple[int | None, int | None]:
    import json

    from steadyolo.vault.checkpoints import STATE, best_suffix_of

    copies = run.copies()
    if not copies:
        return None, None
    state = run.read_file(copies[-1], STATE)
    ledger = json.loads(state)["state"]["ledger"]
    suffix = best_suffix_of(int(ledger["best_tick"]))
    return _told(state, next((copy.name for copy in copies if copy.name.endswith(suffix)), None))

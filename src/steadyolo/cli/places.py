"""From a URL on the command line to the run that it names, with every other place that keeps it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import DownloadColumn, TextColumn, TransferSpeedColumn
from rich.progress import Progress as RichProgress

from steadyolo.errors import DataLoss, SteadyError, UserError
from steadyolo.events import CopyDropped, CopyFailed, Event, TakenOver
from steadyolo.spec.location import Location, parse_location
from steadyolo.spec.run_spec import RunSpec
from steadyolo.vault.checkpoints import Checkpoints
from steadyolo.vault.files import OURS_FOLDER
from steadyolo.vault.lock import RunLock
from steadyolo.vault.newest import Progress
from steadyolo.vault.objects import ObjectStore
from steadyolo.vault.patience import Patience
from steadyolo.vault.remote_run import Pace, RemoteRun, runs_in
from steadyolo.vault.restore import find_run, restore_run
from steadyolo.vault.session import new_writer_id, open_session
from steadyolo.vault.tiers import Tiers
from steadyolo.vault.uploader import TierSettings

SETTINGS = {"store": "store.url", "replica": "store.replica", "disk": "store.disk"}
PATIENCE_S = 600.0  # for a person who waits, or a machine that starts while the network does


def warn(text: str) -> None:
    """A line on standard error."""
    sys.stderr.write(f"{text}\n")


@dataclass(frozen=True, slots=True)
class Place:
    """A store, and what it is called."""

    location: Location
    store: ObjectStore


def open_place(location: Location) -> Place:
    """The store at `location`. Raises: UserError."""
    from steadyolo.adapters.objects.opening import open_store

    return Place(location, open_store(location))


def named_run(url: str, *, patience: Patience | None = None) -> RemoteRun:
    """The run that `url` names. Raises: UserError naming the runs that are there."""
    location = parse_location(url)
    return find_run(open_place(location.parent).store, location.name, patience=patience or patient())


def named_runs(url: str) -> list[RemoteRun]:
    """The run that `url` names, or all that are kept under it. Raises: UserError where there is none."""
    location = parse_location(url)
    if location.name:
        run = RemoteRun(open_place(location.parent).store, location.name)
        if run.owner() is not None:
            return [run]
    store = open_place(location).store
    names = runs_in(store)
    if not names:
        raise UserError(f"no run is kept in {store.url}", remedy="check the URL")
    return [RemoteRun(store, name) for name in names]


@dataclass(frozen=True, slots=True)
class KeptRun:
    """A run and every copy of it that can be reached, by tier, fastest first. `changes` are settings of tiers that are
    elsewhere now: reached by another URL than the run was told, or not at all where another was given.
    """

    name: str
    copies: dict[str, RemoteRun]
    changes: dict[str, str]


def all_copies(url: str) -> KeptRun:
    """The run that `url` names, in every tier that can be reached. What cannot is told."""
    location = parse_location(url)
    run = named_run(url)
    owner = run.owner()
    told = dict(owner.claim.tiers) if owner else {}
    copies: dict[str, RemoteRun] = {}
    for tier, text in told.items():
        try:
            found = _same_run(open_place(parse_location(text)).store, run.name, owner.claim.run_id if owner else "")
        except SteadyError as error:
            warn(f"warning: {tier}: {error.message}; going on without it")
            continue
        if found is not None:
            copies[tier] = run if found.url == run.url else found
    given = next((tier for tier, found in copies.items() if found is run), None)
    if given is None:  # the place is another now: a disk that is mounted elsewhere, a key that lies elsewhere
        alike = (tier for tier, text in told.items() if tier not in copies and _is_like(text, location))
        given = next(alike, "store" if "store" not in copies else "replica")
        copies[given] = run
    place = str(location.parent)
    return KeptRun(run.name, copies, {SETTINGS[given]: place} if told.get(given) != place else {})


def _is_like(text: str, location: Location) -> bool:
    return parse_location(text).scheme == location.scheme


def pushed(folder: Path, *, timeout_s: float) -> list[str]:
    """Send what the places of the run in `folder` lack. Returns the tiers that could not be reached in time.

    Raises: UserError for a folder that is no run, is in use, has no places or went on elsewhere.
    """
    from steadyolo.adapters.objects.opening import open_stores

    own = folder / OURS_FOLDER
    if not (own / "spec.json").is_file():
        raise UserError(f"{folder} is not a steadyolo run", remedy="name a run folder; `steadyolo runs ls` lists them")
    spec = RunSpec.from_dict(json.loads((own / "spec.json").read_text()))
    stores, writer = open_stores(spec.tiers), new_writer_id()
    with RunLock(own).acquire():
        session = open_session(stores, folder, writer, tiers=spec.tiers, takeover=False, must_reach=True)
        if session is None:
            raise UserError(f"{folder} has no store", remedy=f"give it one: steadyolo resume {folder} store.url=URL")
        settings = {tier: TierSettings(tier=tier, keep_last=spec.num_copies_kept[tier]) for tier in stores}
        checkpoints = Checkpoints(own / "checkpoints", writer_id=writer)
        newest = next(reversed(checkpoints.committed()), None)
        best = checkpoints.best_known_to(newest) if newest is not None else None  # so that retention spares it
        with Tiers(stores, settings, session, folder, checkpoints=checkpoints, best=best, emit=_told) as tiers:
            return tiers.drain(timeout_s)


def _told(event: Event) -> None:
    if isinstance(event, CopyFailed | CopyDropped | TakenOver):
        warn(f"warning: {event}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredRun:
    """The checkpoint that a restored run goes on from, the tier it came from, and what could not be used, in words."""

    name: str
    tier: str
    rejected: tuple[str, ...]
    problems: tuple[str, ...]

    def told(self) -> dict[str, object]:
        """For a program that reads it."""
        return {
            "checkpoint": self.name,
            "tier": self.tier,
            "rejected": list(self.rejected),
            "problems": list(self.problems),
        }


def restored_into(folder: Path, kept: KeptRun) -> RestoredRun:
    """Restore `kept` into `folder`, and warn of what is not used. Raises: as `restore_run`; DataLoss without a copy."""
    with _shown_arrival() as progress:
        restored = restore_run(kept.copies, folder, patience=patient(), progress=progress)
    found = restored.found
    rejected = tuple(f"{one.name} in the {one.tier} is not used: {one.why}" for one in found.rejected)
    problems = tuple(f"not restored: {problem}" for problem in restored.problems)
    for text in (*rejected, *problems):
        warn(f"warning: {text}")
    if found.snapshot is None or found.tier is None:
        raise DataLoss(
            f"no copy of {kept.name} can be used",
            remedy="look at the warnings above; another place may have one; `steadyolo store verify` reads them all",
        )
    return RestoredRun(name=found.snapshot.name, tier=found.tier, rejected=rejected, problems=problems)


@contextmanager
def _shown_arrival() -> Iterator[Progress]:
    """Show on standard error what arrives, and how fast."""
    columns = (TextColumn("{task.description}"), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as shown:

        def progress(tier: str, name: str) -> Pace:
            task = shown.add_task(f"{name} from the {tier}", total=None)
            return lambda num_bytes: shown.update(task, advance=num_bytes)

        yield progress


def patient() -> Patience:
    """As long as a person waits."""
    return Patience(PATIENCE_S, tell=warn)


def _same_run(store: ObjectStore, name: str, run_id: str) -> RemoteRun | None:
    """The run of this id in another place, where a number may have been put behind its name."""
    candidates = [name]
    if (owner := RemoteRun(store, name).owner()) is None or owner.claim.run_id != run_id:
        candidates = runs_in(store)
    for candidate in candidates:
        run = RemoteRun(store, candidate)
        if (owner := run.owner()) is not None and owner.claim.run_id == run_id:
            return run
    return None

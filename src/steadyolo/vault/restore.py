"""Puts a run's folder back together from a place that keeps copies of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from steadyolo.errors import UserError
from steadyolo.vault.checkpoints import Checkpoints
from steadyolo.vault.disk import ensure_folder
from steadyolo.vault.files import replace_file
from steadyolo.vault.mirror import restore_mirror
from steadyolo.vault.newest import FoundCopy, Patience, bring, newest_of_all
from steadyolo.vault.objects import ObjectStore
from steadyolo.vault.remote_run import RemoteRun, runs_in
from steadyolo.vault.session import TierRecord

OURS_FOLDER = "steadyolo"


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A run folder that was put back: where it is, what was found, and which other files could not be restored."""

    folder: Path
    found: FoundCopy
    problems: tuple[str, ...]


def find_run(store: ObjectStore, name: str, *, patience: Patience) -> RemoteRun:
    """Run `name` in `store`. Raises: UserError naming the runs that are there."""
    run = RemoteRun(store, name)
    if not name or patience.keep_trying(run.owner) is None:
        there = patience.keep_trying(lambda: runs_in(store))
        known = f"name one of the runs there: {', '.join(there[-10:])}" if there else "check the URL"
        raise UserError(f"{run.url} is not a run that steadyolo keeps", remedy=known)
    return run


def restore_run(
    runs: Mapping[str, RemoteRun], folder: Path, *, patience: Patience, progress: object = None
) -> Restored:
    """Restore the run that `runs` (by tier, fastest first) are copies of into `folder`: files, then the newest
    checkpoint that verifies in any of them, and the best one.

    What `folder` holds of the same run is kept and used; a restore that was interrupted goes on.
    Raises: UserError when `folder` holds something else; `Transient` when the stores fail for too long.
    """
    own = folder / OURS_FOLDER
    claims = {tier: patience.keep_trying(run.owner) for tier, run in runs.items()}
    owner = next(owner for owner in claims.values() if owner is not None)
    record = TierRecord.read(own)
    if record is None and folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is there and is another run's", remedy="choose another project= or name=")
    if record is not None and record.run_id != owner.claim.run_id:
        raise UserError(f"{folder} is there and is another run's", remedy="choose another project= or name=")
    ensure_folder(own)
    known = record or TierRecord(run_id=owner.claim.run_id)
    for tier, run in runs.items():
        known = known.with_place(tier, run.url)
    known.write(own)  # from here on an interrupted restore is known to be one of this run
    problems = patience.keep_trying(lambda: restore_mirror(next(iter(runs.values())), folder))
    checkpoints = Checkpoints(own / "checkpoints", writer_id="restore")
    found = newest_of_all(
        checkpoints,
        runs,
        token_of=lambda name: known.tokens.get(checkpoints.writer_of(name) or "", 0),
        patience=patience,
    )
    known = TierRecord(run_id=known.run_id, tokens={**known.tokens, **found.tokens}, places=known.places)
    known.write(own)
    if found.snapshot is not None and not (own / "spec.json").is_file():
        spec = found.snapshot.made_from["spec"]
        replace_file(own / "spec.json", (json.dumps(spec, indent=2, default=str) + "\n").encode())
    _bring_best(checkpoints, runs, found, patience=patience)
    return Restored(folder=folder, found=found, problems=tuple(problems))


def _bring_best(
    checkpoints: Checkpoints, runs: Mapping[str, RemoteRun], found: FoundCopy, *, patience: Patience
) -> None:
    """The checkpoint with the best score, too: its weights are part of the run."""
    if found.snapshot is None or not found.snapshot.state.ledger.best_tick:
        return
    suffix = f".{found.snapshot.state.ledger.best_tick:08d}"
    if any(name.endswith(suffix) for name in checkpoints.committed()):
        return
    for run in runs.values():
        for copy in reversed(run.copies()):
            if copy.name.endswith(suffix):
                bring(checkpoints, run, copy, patience=patience)
                return

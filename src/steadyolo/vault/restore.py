"""Puts a run's folder back together from a place that keeps copies of it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from steadyolo.errors import DataLoss, UserError
from steadyolo.vault.checkpoints import Checkpoints, best_suffix_of
from steadyolo.vault.disk import ensure_folder
from steadyolo.vault.files import OURS_FOLDER, replace_file
from steadyolo.vault.lock import RunLock
from steadyolo.vault.mirror import restore_mirror
from steadyolo.vault.newest import FoundCopy, Progress, bring, newest_of_all
from steadyolo.vault.objects import ObjectStore
from steadyolo.vault.patience import Patience
from steadyolo.vault.remote_run import RemoteRun, runs_in
from steadyolo.vault.session import TierRecord
from steadyolo.vault.tiers import token_of

_LEFT_BY_A_KILL = {OURS_FOLDER, f"{OURS_FOLDER}/lock", f"{OURS_FOLDER}/.tiers.json.partial"}  # before it was begun


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A run folder that was put back: where it is, what was found, and which other files could not be restored."""

    folder: Path
    found: FoundCopy
    problems: tuple[str, ...]


def find_run(store: ObjectStore, name: str, *, patience: Patience) -> RemoteRun:
    """Run `name` in `store`. Raises: UserError naming the runs that are there."""
    run = RemoteRun(store, name)
    is_there = bool(name) and (patience.keep_trying(run.owner) is not None or patience.keep_trying(run.copies))
    if not is_there:  # copies without a claim, which somebody removed, are a run all the same
        there = patience.keep_trying(lambda: runs_in(store))
        known = f"name one of the runs there: {', '.join(there[-10:])}" if there else "check the URL"
        raise UserError(f"{run.url} is not a run that steadyolo keeps", remedy=known)
    return run


def restore_run(
    runs: Mapping[str, RemoteRun],
    folder: Path,
    *,
    patience: Patience,
    progress: Progress = lambda _tier, _name: lambda _: None,
) -> Restored:
    """Restore into `folder` the run that `runs` (by tier, fastest first) are copies of: its files, then the newest
    checkpoint that verifies in any of them, and the best one.

    What `folder` holds of the same run is kept and used; a restore that was interrupted goes on.
    Raises: UserError when `folder` holds something else or is in use; `Transient` when the stores fail for too long.
    """
    record = _record_for(runs, folder, patience=patience)
    ensure_folder(folder / OURS_FOLDER)
    with RunLock(folder / OURS_FOLDER).acquire():
        return _restore(runs, folder, record, patience=patience, progress=progress)


def _restore(
    runs: Mapping[str, RemoteRun], folder: Path, record: TierRecord, *, patience: Patience, progress: Progress
) -> Restored:
    own = folder / OURS_FOLDER
    record.write(own)  # from here on an interrupted restore is known to be one of this run
    problems: list[str] = []
    for run in runs.values():
        num_restored, problems = patience.keep_trying(lambda run=run: restore_mirror(run, folder))  # type: ignore[misc]
        if num_restored and not problems:
            break
    checkpoints = Checkpoints(own / "checkpoints", writer_id="restore")
    found = newest_of_all(
        checkpoints,
        runs,
        token_of=lambda name: token_of(checkpoints, record, name),
        patience=patience,
        progress=progress,
    )
    record = replace(record, tokens={**record.tokens, **found.tokens})
    record.write(own)
    if found.snapshot is not None and not (own / "spec.json").is_file():
        spec = found.snapshot.made_from["spec"]
        replace_file(own / "spec.json", (json.dumps(spec, indent=2, default=str) + "\n").encode())
    best = bring_best(checkpoints, runs, found, patience=patience)
    replace(record, tokens={**record.tokens, **best.tokens}).write(own)
    return Restored(folder=folder, found=found, problems=(*problems, *best.problems))


def _record_for(runs: Mapping[str, RemoteRun], folder: Path, *, patience: Patience) -> TierRecord:
    """The folder's record, or a new one where the folder is empty."""
    owners = [owner for run in runs.values() if (owner := patience.keep_trying(run.owner)) is not None]
    record = TierRecord.read(folder / OURS_FOLDER)
    run_id = owners[0].claim.run_id if owners else record.run_id if record else uuid.uuid4().hex
    is_empty = {path.relative_to(folder).as_posix() for path in folder.rglob("*")} <= _LEFT_BY_A_KILL
    if (record is None and not is_empty) or (record is not None and record.run_id != run_id):
        raise UserError(f"{folder} is there and holds something else", remedy="choose another project= or name=")
    record = record or TierRecord(run_id=run_id)
    for tier, run in runs.items():
        record = record.with_place(tier, run.url)
    return record


@dataclass(frozen=True, slots=True, kw_only=True)
class BroughtBest:
    """What came of bringing the best checkpoint: tokens as in `FoundCopy`, and the copies of it that are not good."""

    tokens: Mapping[str, int]
    problems: tuple[str, ...]


def bring_best(
    checkpoints: Checkpoints, runs: Mapping[str, RemoteRun], found: FoundCopy, *, patience: Patience
) -> BroughtBest:
    """The checkpoint with the best score, too: its weights are part of the run, which can go on without them.

    Raises: `Transient` when the stores fail for too long.
    """
    problems: list[str] = []
    if found.snapshot is None or not found.snapshot.state.ledger.best_tick:
        return BroughtBest(tokens={}, problems=())
    suffix = best_suffix_of(found.snapshot.state.ledger.best_tick)
    if (here := next((name for name in checkpoints.committed() if name.endswith(suffix)), None)) is not None:
        try:
            checkpoints.verify(here)
            return BroughtBest(tokens={}, problems=())
        except (DataLoss, UserError) as error:
            problems.append(f"the best checkpoint {here}: {error.message}")
    for tier, run in runs.items():
        for copy in reversed(patience.keep_trying(run.copies)):
            if not copy.name.endswith(suffix):
                continue
            try:
                bring(checkpoints, run, copy, patience=patience)
            except (DataLoss, UserError) as error:
                problems.append(f"the best checkpoint {copy.name} in the {tier}: {error.message}")
                continue
            writer = checkpoints.writer_of(copy.name)
            return BroughtBest(tokens={writer: copy.token} if writer else {}, problems=tuple(problems))
    return BroughtBest(tokens={}, problems=tuple(problems))

"""Finds the newest checkpoint that verifies, in whichever place it is, and brings it into the run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from steadyolo.errors import DataLoss, SteadyError, Transient, UserError
from steadyolo.state.snapshot import Snapshot
from steadyolo.vault.checkpoints import RUN_FOLDER, Checkpoints, Rejected
from steadyolo.vault.copy import Copy
from steadyolo.vault.patience import Patience
from steadyolo.vault.remote_run import Pace, RemoteRun

Progress = Callable[[str, str], Pace]  # of a tier and a checkpoint: what hears of the bytes of each part that arrives


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundCopy:
    """The newest checkpoint that is good, now in the run folder, and the tier that it came from.

    `rejected` are the newer or nearer ones that are not good, newest first. `tokens` are those of the sessions whose
    checkpoints were brought here, by writer.
    """

    snapshot: Snapshot | None
    tier: str | None
    rejected: tuple[Rejected, ...]
    tokens: Mapping[str, int]


def newest_of_all(
    checkpoints: Checkpoints,
    runs: Mapping[str, RemoteRun],
    *,
    token_of: Callable[[str], int],
    patience: Patience,
    progress: Progress = lambda _tier, _name: lambda _: None,
) -> FoundCopy:
    """The newest checkpoint that verifies among `checkpoints` and `runs` (fastest first), brought into `checkpoints`.

    `token_of` says which session committed a checkpoint of the run folder. A tier that cannot be listed is an error:
    leave it out of `runs` to go on without it.
    What the folder holds beyond the one that is taken, from a session before it, is set aside and told in `rejected`:
    under its newer name it would push out what is saved from here on.
    A copy that one tier does not give, or not in time, is taken from the next.
    Raises: `Transient` when a store that is asked does not answer for too long, and no other has that copy; `UserError`
    when it refuses (credentials, a key, an archive to be thawed) or the copy is of a version that is not known here.
    """
    places: dict[Copy, list[str]] = {Copy(token_of(name), name): [RUN_FOLDER] for name in checkpoints.names()}
    for tier, run in runs.items():
        for copy in patience.keep_trying(run.copies):
            places.setdefault(copy, []).append(tier)
    rejected: list[Rejected] = []
    for copy in sorted(places, reverse=True):
        withheld: SteadyError | None = None
        for tier in places[copy]:
            try:
                tokens = {}
                if tier != RUN_FOLDER:
                    bring(checkpoints, runs[tier], copy, patience=patience, progress=progress(tier, copy.name))
                    tokens = {writer: copy.token} if (writer := checkpoints.writer_of(copy.name)) else {}
                snapshot = checkpoints.load(copy.name)
                rejected += _set_aside_beyond(copy, checkpoints, rejected)
                return FoundCopy(snapshot=snapshot, tier=tier, rejected=tuple(rejected), tokens=tokens)
            except DataLoss as error:
                rejected.append(Rejected(name=copy.name, why=error.message, tier=tier))
            except (Transient, UserError) as error:
                withheld = error
        if withheld is not None:  # an older one would do, but this one is kept: better to wait than to lose work
            raise withheld
    return FoundCopy(snapshot=None, tier=None, rejected=tuple(rejected), tokens={})


def _set_aside_beyond(copy: Copy, checkpoints: Checkpoints, rejected: Sequence[Rejected]) -> list[Rejected]:
    """Set aside what sorts after `copy` by name and was not rejected: sessions before its own committed that."""
    judged = {found.name for found in rejected if found.tier == RUN_FOLDER}
    beyond = [name for name in checkpoints.committed() if name > copy.name and name not in judged]
    why = "the run was taken over before it, and went on from there; set aside as {}"
    return [Rejected(name=name, why=why.format(checkpoints.set_aside(name))) for name in beyond]


def bring(
    checkpoints: Checkpoints, run: RemoteRun, copy: Copy, *, patience: Patience, progress: Pace = lambda _: None
) -> None:
    """Fetch `copy` into `checkpoints`. What an attempt before has fetched is not fetched again.

    Raises: `DataLoss`, `UserError`, and `Transient` when the store or the disk fails for too long.
    """
    staged = checkpoints.fetching(copy.name, copy.token)
    manifest = patience.keep_trying(lambda: run.fetch(copy, staged, progress=progress))
    checkpoints.adopt(copy.name, staged, manifest)

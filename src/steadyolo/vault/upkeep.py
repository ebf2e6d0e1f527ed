"""What is done to copies while nobody trains: reading them through in shares, and deleting those that are too many."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from steadyolo.errors import DataLoss, UserError
from steadyolo.plan.retention import plan_retention
from steadyolo.vault.checkpoints import STATE, best_suffix_of
from steadyolo.vault.copy import Copy, Part
from steadyolo.vault.digested import from_text, to_text
from steadyolo.vault.files import OURS_FOLDER
from steadyolo.vault.mirror import verify_mirror
from steadyolo.vault.objects import Absent
from steadyolo.vault.remote_run import RemoteRun

CURSOR = f"{OURS_FOLDER}/scrub.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bad:
    """A copy, by its label, or a mirrored file that is not what was sent, and why."""

    what: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What reading a run gave: the bytes that were read, how many there are in all, and what was found to be bad."""

    num_bytes: int
    total_bytes: int
    bad: tuple[Bad, ...]


def verify_all(run: RemoteRun) -> Reading:
    """Read everything of `run`: its copies and its other files. A run without a copy is not well."""
    copies = run.copies()
    bad = [] if copies else [Bad(what="copies", why="there is none yet")]
    num_bytes = 0
    for copy in copies:
        try:
            num_bytes += run.verify(copy)
        except (DataLoss, UserError) as error:
            bad.append(Bad(what=copy.label, why=error.message))
    mirrored_bytes, problems = verify_mirror(run)
    num_bytes += mirrored_bytes
    bad += [Bad(what=path, why=why) for path, why in problems.items()]
    return Reading(num_bytes=num_bytes, total_bytes=num_bytes, bad=tuple(bad))


def scrub(run: RemoteRun, share: float) -> Reading:
    """Read the next `share` of all bytes of `run`'s copies; where the last call ended is kept beside them.

    1 / `share` calls read everything that was there throughout. Manifests are read each time.
    Raises: UserError for a share that is not over 0 and up to 1, and what the store raises.
    """
    if not 0 < share <= 1:
        raise UserError(f"a share of {share} cannot be read", remedy="use a share over 0 and up to 1, such as 0.05")
    bad: list[Bad] = []
    parts: list[tuple[str, Copy, Part]] = []
    for copy in run.copies():
        try:
            parts += [(_place(copy, part), copy, part) for part in run.manifest(copy).parts]
        except (DataLoss, UserError) as error:
            bad.append(Bad(what=copy.label, why=error.message))
    parts.sort(key=lambda item: item[0])
    total_bytes = sum(part.num_bytes for _, _, part in parts)
    last = _cursor(run)
    ahead = [item for item in parts if item[0] > last]
    num_bytes = 0
    for place, copy, part in [*ahead, *parts[: len(parts) - len(ahead)]]:
        if num_bytes >= share * total_bytes:
            break
        try:
            run.verify(copy, only=lambda found, part=part: found == part)  # type: ignore[misc]
        except (DataLoss, UserError) as error:
            bad.append(Bad(what=copy.label, why=error.message))
        num_bytes += part.num_bytes
        last = place
    run.store.put(f"{run.name}/{CURSOR}", to_text({"version": 1, "last": last}))
    return Reading(num_bytes=num_bytes, total_bytes=total_bytes, bad=tuple(bad))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """What would be deleted: whole copies, and objects of copies that never counted or do no more."""

    copies: tuple[Copy, ...]
    orphans: tuple[str, ...]
    kept: tuple[Copy, ...]
    bad: tuple[Bad, ...]  # neither kept nor deleted: somebody should look at them


def plan_pruning(run: RemoteRun, keep_last: int) -> Pruning:
    """What to delete so that the newest `keep_last` copies that verify, and the best one, are left.

    Reads the copies that are to be kept: one that is bad never pushes a good one out. Objects of the process that holds
    the run are left alone, since it may be sending them.
    """
    good: list[Copy] = []
    bad: list[Bad] = []
    copies = run.copies()
    for copy in reversed(copies):
        if len(good) == keep_last:
            break
        try:
            run.verify(copy)
            good.append(copy)
        except (DataLoss, UserError) as error:
            bad.append(Bad(what=copy.label, why=error.message))
    suffix = best_suffix(run, good[0]) if good else None
    labels = {f"{copy.token:06d}/{copy.name}": copy for copy in copies if copy.label not in {it.what for it in bad}}
    pinned = [label for label, copy in labels.items() if suffix and copy.name.endswith(suffix)]
    doomed = [labels[label] for label in plan_retention(labels, keep_last=keep_last, pinned=pinned)] if good else []
    owner = run.owner()
    live = f".w{owner.claim.token:06d}/" if owner else None
    orphans = [key for key in run.orphans() if live is None or live not in key]
    return Pruning(
        copies=tuple(doomed),
        orphans=tuple(orphans),
        kept=tuple(copy for copy in labels.values() if copy not in doomed),
        bad=tuple(bad),
    )


def prune(run: RemoteRun, pruning: Pruning) -> None:
    """Delete what `pruning` names. Stopped at any point, it leaves whole copies, and orphans for the next time.

    What was an orphan when it was planned and belongs to a copy that counts by now is left alone.
    """
    for copy in pruning.copies:
        run.delete(copy)
    for key in sorted(set(pruning.orphans) & set(run.orphans())):
        run.store.delete(key)


def best_suffix(run: RemoteRun, copy: Copy) -> str | None:
    """How the names of copies with the best score end, as far as `copy` knows; None where nothing was scored."""
    state = json.loads(run.read_file(copy, STATE))
    tick = state["state"]["ledger"]["best_tick"]
    return best_suffix_of(tick) if tick else None


def _cursor(run: RemoteRun) -> str:
    try:
        text = run.store.get(f"{run.name}/{CURSOR}").data
        return str(from_text(text, what=f"{CURSOR} of {run.url}")["last"])
    except (Absent, DataLoss):
        return ""


def _place(copy: Copy, part: Part) -> str:
    """Where a part stands in the order of reading: spread evenly, so that each call meets old copies and new ones."""
    return hashlib.sha256(f"{copy.label}/{part.key}".encode()).hexdigest()


def sizes(run: RemoteRun, copies: Sequence[Copy]) -> dict[Copy, int]:
    """Bytes of each copy, as its manifest tells; 0 for one that cannot be read."""
    found: dict[Copy, int] = {}
    for copy in copies:
        try:
            found[copy] = run.manifest(copy).manifest.num_bytes
        except (DataLoss, UserError):
            found[copy] = 0
    return found

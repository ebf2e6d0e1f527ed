"""`Session`: one process's turn at a run, with a token that is higher than that of every process before it."""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import ClassVar, TypeVar

from steadyolo.errors import SteadyError, Transient, UserError
from steadyolo.vault.claim import Claim
from steadyolo.vault.crew import Crew
from steadyolo.vault.files import OURS_FOLDER, replace_file
from steadyolo.vault.objects import ObjectStore, Taken
from steadyolo.vault.priority import give_way
from steadyolo.vault.remote_run import Fenced, Owner, RemoteRun

_Result = TypeVar("_Result")
RECORD = "tiers.json"
_REACH_TIMEOUT_S = 20.0  # a place that says nothing for so long is left to the uploader
_NUM_TRIES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class TierRecord:
    """What a run folder knows of its copies: `steadyolo/tiers.json`. Holds no credential."""

    VERSION: ClassVar[int] = 1

    run_id: str
    tokens: Mapping[str, int] = field(default_factory=dict)  # by writer id: the sessions whose checkpoints are here
    places: Mapping[str, str] = field(default_factory=dict)  # by tier: URL of the run there

    @property
    def newest_token(self) -> int:
        """Token of the last session in this folder, 0 where there was none."""
        return max(self.tokens.values(), default=0)

    def name_in(self, tier: str, store: ObjectStore) -> str | None:
        """What the run is called in `store`, None where it is not known to be there."""
        root, _, name = self.places.get(tier, "").rpartition("/")
        return name if root == store.url.rstrip("/") else None

    def with_session(self, writer_id: str, token: int) -> TierRecord:
        return replace(self, tokens={**self.tokens, writer_id: token})

    def with_place(self, tier: str, url: str) -> TierRecord:
        return replace(self, places={**self.places, tier: url})

    def write(self, own: Path) -> None:
        """Keep it in the folder `own`. Raises: `OSError`."""
        replace_file(own / RECORD, (json.dumps({"version": self.VERSION, **asdict(self)}, indent=2) + "\n").encode())

    @classmethod
    def read(cls, own: Path) -> TierRecord | None:
        """The record in the folder `own`, None where there is none. Raises: UserError when it is not readable."""
        path = own / RECORD
        try:
            raw = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            raw = None
        if not isinstance(raw, dict):
            raise UserError(
                f"{path} is damaged",
                remedy="restore the run from a store: steadyolo resume URL project=NEW; or remove that file, and the "
                "stores keep what follows as a new run",
            )
        if raw.pop("version", None) != cls.VERSION or set(raw) != {f.name for f in fields(cls)}:
            raise UserError(f"{path} has another version", remedy="use the steadyolo that wrote it")
        return cls(**raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """This process's claim, and the run's copies in each tier that could be reached; why not, for the others."""

    claim: Claim
    record: TierRecord
    runs: Mapping[str, RemoteRun]
    unreachable: Mapping[str, SteadyError]


def new_writer_id() -> str:
    """A name that no other process has."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def open_session(
    stores: Mapping[str, ObjectStore],
    folder: Path,
    writer_id: str,
    *,
    tiers: Mapping[str, object],
    takeover: bool,
    must_reach: bool,
    timeout_s: float = _REACH_TIMEOUT_S,
) -> Session | None:
    """Claim the run in `folder` in every store that answers, and record that in the folder. None without stores.

    The run is called as the folder is; a new one, where that name is taken, gets the next free number. `tiers` says
    where the stores are, for whoever finds one of them.
    Raises: UserError when another process took the run over since this folder was last used, unless `takeover`; with
    `must_reach`, what a store refuses (a wrong bucket, no permission). A store that does not answer is never an error.
    """
    if not stores:
        return None
    own, wanted_name = folder.absolute() / OURS_FOLDER, folder.absolute().name
    record = TierRecord.read(own) or TierRecord(run_id=uuid.uuid4().hex)
    claim = Claim(
        token=0,
        run_id=record.run_id,
        writer_id=writer_id,
        host=socket.gethostname(),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        tiers={tier: str(location) for tier, location in tiers.items()},
    )
    names = {tier: name for tier, store in stores.items() if (name := record.name_in(tier, store)) is not None}

    def look(tier: str) -> Owner | None:
        return RemoteRun(stores[tier], names.get(tier, wanted_name)).owner()

    for _ in range(_NUM_TRIES):
        owners, unreachable = _each(stores, look, timeout_s)
        _refuse_refusals(unreachable, must_reach=must_reach)
        ours = {tier: owner.claim for tier, owner in owners.items() if owner and owner.claim.run_id == claim.run_id}
        if not takeover:
            _refuse_takeover(ours, record)
        newest = max((found.token for found in ours.values()), default=0)
        claim = replace(claim, token=max(newest, record.newest_token) + 1)
        record = record.with_session(claim.writer_id, claim.token)
        record.write(own)  # before the claim: killed between the two, this folder still knows its own claim

        def settle(tier: str, claim: Claim = claim) -> RemoteRun:
            return take_place(stores[tier], names.get(tier, wanted_name), claim, is_ours=tier in names)

        runs, failed = _each({tier: stores[tier] for tier in owners}, settle, timeout_s)
        if any(isinstance(error, Taken | Fenced) for error in failed.values()):
            continue  # another process claimed at the same moment; the one with the last word goes on
        _refuse_refusals(failed, must_reach=must_reach)
        for tier, run in runs.items():
            record = record.with_place(tier, run.url)
        record.write(own)
        return Session(claim=claim, record=record, runs=runs, unreachable={**unreachable, **failed})
    raise UserError("the run is being claimed by several processes at once", remedy="stop all but one of them")


def take_place(store: ObjectStore, name: str, claim: Claim, *, is_ours: bool) -> RemoteRun:
    """Claim run `name` in `store`; where that is another run's, and not known to be ours, the next free name.

    Raises: `UserError` when a run that is known to be there is not; `Fenced` when a newer session holds it; `Taken`
    when another process was faster; and what the store raises.
    """
    for candidate in _numbered(name):
        run = RemoteRun(store, candidate)
        owner = run.owner()
        if owner is not None and owner.claim.run_id != claim.run_id:
            if is_ours:
                raise UserError(
                    f"{run.url} holds another run now",
                    remedy="point the tier at another place, or restore what was there",
                )
            continue
        if owner is None and is_ours:  # to begin anew would fill the folder that a missing disk is mounted on
            raise UserError(
                f"the run was kept in {run.url} and is not there any more",
                remedy="mount the disk again or look who emptied the place; to go on without it, give the tier another "
                "place or none, such as store.disk=none",
            )
        if owner is None or owner.claim.token < claim.token:
            run.take(claim, over=owner)
        elif owner.claim.writer_id != claim.writer_id:
            run.check(claim)
        return run
    raise AssertionError("names do not end")


def _numbered(name: str) -> Iterator[str]:
    """`train`, `train2`, `train3` …, as Ultralytics numbers folders."""
    yield name
    yield from (f"{name}{number}" for number in count(2))


def _each(
    stores: Mapping[str, ObjectStore], work: Callable[[str], _Result], timeout_s: float
) -> tuple[dict[str, _Result], dict[str, SteadyError]]:
    """What `work` gives for each tier, all at once; and the errors of the others."""
    done: dict[str, _Result] = {}
    failed: dict[str, SteadyError] = {}
    crew = Crew(len(stores), name="steadyolo-claim", prepare=give_way)
    futures: dict[str, Future[_Result]] = {tier: crew.submit(partial(work, tier)) for tier in stores}
    for tier, future in futures.items():
        try:
            done[tier] = future.result(timeout_s)
        except SteadyError as error:
            failed[tier] = error
        except FutureTimeout:
            failed[tier] = Transient(
                f"{stores[tier].url} did not answer within {timeout_s:g} s",
                remedy="check the network; it is tried again",
            )
    crew.dismiss()
    return done, failed


def _refuse_refusals(failed: Mapping[str, SteadyError], *, must_reach: bool) -> None:
    for error in failed.values():
        if must_reach and isinstance(error, UserError):
            raise error


def _refuse_takeover(owners: Mapping[str, Claim], record: TierRecord) -> None:
    """Raise `UserError` when the run went on elsewhere since this folder was last used."""
    for other in owners.values():
        if other.writer_id not in record.tokens and other.token >= record.newest_token:
            raise UserError(
                f"this run went on elsewhere: {other.writer_id} on {other.host} took it over at {other.since}",
                remedy="let that process go on; or, if it is gone, pass allow=takeover: the newest checkpoint of all "
                "places is taken then",
            )

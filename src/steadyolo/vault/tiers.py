"""`Tiers`: every place beyond the run folder that keeps a run's checkpoints, behind the training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from steadyolo import events
from steadyolo.errors import SteadyError
from steadyolo.vault.checkpoints import Checkpoints
from steadyolo.vault.files import OURS_FOLDER
from steadyolo.vault.objects import ObjectStore
from steadyolo.vault.remote_run import RemoteRun
from steadyolo.vault.session import Session, TierRecord, take_place
from steadyolo.vault.uploader import TierSettings, Uploader

_LOOK_EVERY_S = 0.2


class Tiers:
    """One uploader for each tier of a session. While entered they run; leaving ends them within a moment.

    Without tiers it does nothing, so that callers need not ask.
    """

    def __init__(
        self,
        stores: Mapping[str, ObjectStore],
        settings: Mapping[str, TierSettings],
        session: Session | None,
        folder: Path,
        *,
        checkpoints: Checkpoints,
        best: str | None,
        emit: Callable[[events.Event], None],
        chance: Callable[[], float] = lambda: 0.5,
    ) -> None:
        self.taken_over: str | None = None  # why, once another process has the run
        self._emit = emit
        self._own = folder / OURS_FOLDER
        self._uploaders: dict[str, Uploader] = {}
        if session is None:
            return
        self._record = session.record
        for tier, store in stores.items():
            self._uploaders[tier] = Uploader(
                folder,
                settings=settings[tier],
                claim=session.claim,
                place=self._placing(tier, store, session, folder.name),
                token_of=lambda name: token_of(checkpoints, self._record, name),
                best=best,
                emit=self._heard,
                chance=chance,
            )
            if tier in session.unreachable:
                emit(_unreachable(tier, session.unreachable[tier]))

    def __enter__(self) -> Self:
        for uploader in self._uploaders.values():
            uploader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for uploader in self._uploaders.values():
            uploader.close()

    def offer(self, name: str, num_bytes: int, *, best: str | None) -> None:
        """Have committed checkpoint `name` kept everywhere soon. Never waits."""
        for uploader in self._uploaders.values():
            uploader.offer(name, num_bytes, best=best)

    def needed(self) -> Collection[str]:
        """Checkpoints that the run folder must keep, because they have yet to be read from it."""
        return {name for uploader in self._uploaders.values() for name in uploader.needed()}

    def drain(self, timeout_s: float, *, give_up: Callable[[], bool] = lambda: False) -> list[str]:
        """Wait until everything is everywhere, for at most `timeout_s` in all, or until `give_up` says so.

        Returns the tiers that were not done.
        """
        ends_at = time.monotonic() + timeout_s
        for uploader in self._uploaders.values():
            uploader.flush()
        left = dict(self._uploaders)
        while left and time.monotonic() < ends_at and not give_up():
            left = {tier: uploader for tier, uploader in left.items() if not uploader.drain(_LOOK_EVERY_S)}
        return [tier for tier, uploader in left.items() if not uploader.drain(0.0)]

    def _heard(self, event: events.Event) -> None:
        if isinstance(event, events.TakenOver):
            self.taken_over = event.why
        self._emit(event)

    def _placing(self, tier: str, store: ObjectStore, session: Session, wanted_name: str) -> Callable[[], RemoteRun]:
        """What claims `tier`: nothing to do where the session did so already."""

        def place() -> RemoteRun:
            if tier in session.runs:
                return session.runs[tier]
            name = self._record.name_in(tier, store)
            run = take_place(store, name or wanted_name, session.claim, is_ours=name is not None)
            self._record = self._record.with_place(tier, run.url)
            self._record.write(self._own)
            return run

        return place


def token_of(checkpoints: Checkpoints, record: TierRecord | None, name: str) -> int:
    """Token of the session that committed checkpoint `name` of a run folder; 0 for one from before there were any."""
    writer = checkpoints.writer_of(name)
    return record.tokens.get(writer, 0) if record is not None and writer is not None else 0


def _unreachable(tier: str, error: SteadyError) -> events.CopyFailed:
    return events.CopyFailed(tier=tier, error=error.message, remedy=error.remedy, attempt=1, retry_s=0.0)

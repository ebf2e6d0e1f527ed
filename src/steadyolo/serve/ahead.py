"""A session that is opened while the rest of its process is still being imported.

Opening is the longest part of a start, and hardly any of it is Python: beside it, imports cost nothing.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass

from steadyolo.errors import SteadyError
from steadyolo.serve.finding import find_served
from steadyolo.serve.served_model import ServedModel
from steadyolo.serve.session import CompilesShapes, OpenSession, Session, SessionSettings


@dataclass(frozen=True, slots=True)
class _Opened:
    version: str
    settings: SessionSettings
    session: Session


class Ahead:
    """An `OpenSession` that has begun with the session that it expects to be asked for."""

    def __init__(self, open_session: OpenSession) -> None:
        self._open_session = open_session
        self._opened: _Opened | None = None
        self._thread: threading.Thread | None = None

    def begin(self, name: str, settings: SessionSettings) -> None:
        """Find the model called `name` on this machine, open it and compile its full shape; returns at once.

        What fails is left to whoever asks for it.
        """
        self._thread = threading.Thread(target=self._open, args=(name, settings), name="ahead", daemon=True)
        self._thread.start()

    def __call__(self, model: ServedModel, settings: SessionSettings) -> Session:
        """The session that was begun where it is of this version and these settings, once; else a fresh one."""
        if self._thread is not None:
            self._thread.join()
        opened, self._opened, self._thread = self._opened, None, None
        if opened is not None:
            if (opened.version, opened.settings) == (model.version, settings):
                return opened.session
            opened.session.close()
        return self._open_session(model, settings)

    def _open(self, name: str, settings: SessionSettings) -> None:
        with suppress(SteadyError, OSError):
            model = find_served(name, verify=False)
            session = self._open_session(model, settings)
            if isinstance(session, CompilesShapes):
                session.compile((1, 3, *model.shape_px))
            self._opened = _Opened(model.version, settings, session)

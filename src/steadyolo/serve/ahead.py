"""A session that compiles while the rest of its process is still being imported.

Compiling is the longest part of a start, and hardly any of it is Python: beside it, imports cost nothing.
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
    compiling: threading.Thread


class Ahead:
    """An `OpenSession` that has begun with the session that it expects to be asked for."""

    def __init__(self, open_session: OpenSession) -> None:
        self._open_session = open_session
        self._opened: _Opened | None = None

    def begin(self, name: str, settings: SessionSettings) -> None:
        """Open the model called `name` on this machine, and begin to compile its full shape.

        What fails is left to whoever asks for it.
        """
        with suppress(SteadyError, OSError):
            model = find_served(name, verify=False)
            session = self._open_session(model, settings)
            compiling = threading.Thread(target=_compile, args=(session, (1, 3, *model.shape_px)), daemon=True)
            compiling.start()
            self._opened = _Opened(model.version, settings, session, compiling)

    def __call__(self, model: ServedModel, settings: SessionSettings) -> Session:
        """The session that was begun where it is of this version and these settings, once; else a fresh one."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.compiling.join()
            if (opened.version, opened.settings) == (model.version, settings):
                return opened.session
            opened.session.close()
        return self._open_session(model, settings)


def _compile(session: Session, shape: tuple[int, ...]) -> None:
    if isinstance(session, CompilesShapes):
        with suppress(SteadyError):  # the run that follows meets the same fault
            session.compile(shape)

"""Reads every byte of a served model beside other work: a start waits for a compiler, not for digests."""

from __future__ import annotations

import threading

from steadyolo.errors import DataLoss
from steadyolo.serve.served_model import ServedModel, verify_served


class Verifying:
    """Begun at once; nothing that was computed meanwhile counts before `finish` returned."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        self._error: DataLoss | OSError | None = None
        self._thread = threading.Thread(target=self._verify, name="verifying", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Return when all was read. Raises: DataLoss where a file is not what was exported; OSError."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _verify(self) -> None:
        try:
            verify_served(self._model)
        except (DataLoss, OSError) as error:
            self._error = error

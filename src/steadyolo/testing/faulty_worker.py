"""`python -m steadyolo.testing.faulty_worker FOLDER FD NICENESS`: a worker whose sessions fail on command.

A command is a file in FOLDER, named FAULT-RUNTIME (such as `garbage-openvino`); it holds for as long as it is there.
Each time that a fault happens, a line is added to `happened`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from steadyolo.adapters.runtimes.opening import open_session
from steadyolo.cli.serve_worker import main
from steadyolo.serve.engine import Engine
from steadyolo.serve.gently import step_back
from steadyolo.serve.served_model import ServedModel
from steadyolo.serve.service import DeviceFault
from steadyolo.serve.session import Images, Output, Session, SessionSettings

BLACK_BELOW = 0.01  # mean of a picture that `crash` is about: others pass


class FaultySession:
    """Another session, with faults: garbage, hang, slow (the file says for how many seconds), fault, crash."""

    def __init__(self, session: Session, folder: Path, runtime: str) -> None:
        self._session, self._folder, self._runtime = session, folder, runtime

    @property
    def label(self) -> str:
        """See `Session`."""
        return self._session.label

    def run(self, images: Images) -> list[Output]:
        """See `Session`."""
        if (delay := self._commanded("slow")) is not None:
            time.sleep(float(delay))
        if self._commanded("hang") is not None:
            self._tell("hang")
            time.sleep(3600)
        if self._commanded("fault") is not None:
            self._tell("fault")
            raise DeviceFault("the device fell off the bus", remedy="use another device")
        if self._commanded("crash") is not None and float(np.mean(images)) < BLACK_BELOW:
            self._tell("crash")
            os.kill(os.getpid(), signal.SIGKILL)
        outputs = self._session.run(images)
        if self._commanded("garbage") is None:
            return outputs
        self._tell("garbage")
        return [np.roll(one, 7, axis=-1) + np.float32(0.5) for one in outputs]

    def close(self) -> None:
        """See `Session`."""
        self._session.close()

    def _commanded(self, fault: str) -> str | None:
        try:
            return (self._folder / f"{fault}-{self._runtime}").read_text()
        except FileNotFoundError:
            return None

    def _tell(self, fault: str) -> None:
        with (self._folder / "happened").open("a") as file:
            file.write(f"{fault} {os.getpid()} {time.monotonic()}\n")


def open_faulty(folder: Path, model: ServedModel, settings: SessionSettings) -> Engine:
    """An engine around a faulty session. `die` ends the process instead, for the model whose name the file holds."""
    command = folder / f"die-{settings.runtime}"
    if command.exists() and model.name == command.read_text():
        with (folder / "happened").open("a") as file:
            file.write(f"die {os.getpid()} {time.monotonic()}\n")
        os.kill(os.getpid(), signal.SIGKILL)
    return Engine(model, FaultySession(open_session(model, settings), folder, settings.runtime))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    step_back(int(sys.argv[3]))
    main(lambda model, settings: open_faulty(folder, model, settings), sys.argv[2:])

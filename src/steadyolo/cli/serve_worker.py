"""`python -m steadyolo.cli.serve_worker FD NICENESS [AHEAD]`: a worker, started by `steadyolo serve` alone.

AHEAD names, as JSON, the model that will be asked for first: it is opened while the rest is imported.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

from steadyolo.serve.gently import step_back
from steadyolo.serve.resident import resident_bytes

if TYPE_CHECKING:
    from steadyolo.serve.loaded import OpenEngine


def main(open_engine: OpenEngine, arguments: list[str], *, first_before_bytes: int | None = None) -> None:
    """Serve the socket with that number, until its other side is closed.

    `first_before_bytes` is the memory that was used before the first model was begun with, where that is ahead of time.
    """
    from steadyolo.serve.worker import Worker

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the front's to answer
    connection = socket.socket(fileno=int(arguments[0]))
    Worker(connection, open_engine, first_before_bytes=first_before_bytes).serve()
    os._exit(0)  # threads inside libraries are not waited for


def _serve(arguments: list[str]) -> None:
    step_back(int(arguments[1]))
    before_bytes = resident_bytes()
    from steadyolo.adapters.runtimes.opening import open_session
    from steadyolo.serve.ahead import Ahead
    from steadyolo.serve.session import SessionSettings

    opened = Ahead(open_session)
    is_ahead = len(arguments) > 2
    if is_ahead:
        asked = json.loads(arguments[2])
        opened.begin(asked["name"], SessionSettings(**asked["settings"]))
    from steadyolo.serve.engine import Engine

    main(
        lambda model, settings: Engine(model, opened(model, settings)),
        arguments,
        first_before_bytes=before_bytes if is_ahead else None,
    )


if __name__ == "__main__":
    _serve(sys.argv[1:])

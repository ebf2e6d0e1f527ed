"""`python -m steadyolo.cli.serve_worker FD NICENESS`: a worker, started by `steadyolo serve` and by nobody else."""

from __future__ import annotations

import os
import signal
import socket
import sys

from steadyolo.serve.loaded import CheckGolden, OpenEngine


def main(open_engine: OpenEngine, check: CheckGolden, arguments: list[str]) -> None:
    """Serve the socket with that number, until its other side is closed."""
    from steadyolo.serve.worker import Worker

    os.nice(int(arguments[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the front's to answer
    Worker(socket.socket(fileno=int(arguments[0])), open_engine, check).serve()
    os._exit(0)  # threads inside libraries are not waited for


if __name__ == "__main__":
    from steadyolo.adapters.runtimes.opening import open_session
    from steadyolo.serve.engine import Engine
    from steadyolo.serve.golden import check_golden

    main(lambda model, settings: Engine(model, open_session(model, settings)), check_golden, sys.argv[1:])

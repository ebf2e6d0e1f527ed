"""The command `steadyolo`: hands over to the command that is asked for, and turns errors into messages and exit codes.

Commands that have to start fast are imported alone; typer and rich, which the others use, take longer than they may.
"""

from __future__ import annotations

import errno
import sys
from dataclasses import dataclass
from importlib import import_module

from steadyolo.errors import SteadyError, UserError

EXIT_FAILED, EXIT_WRONG_REQUEST, EXIT_INTERRUPTED = 1, 2, 130
_NO_ROOM_TO_LOAD = ("failed to map segment", "cannot allocate memory")  # what a dynamic linker says


@dataclass(frozen=True, slots=True)
class Light:
    """A command whose module has `main(arguments)`, and parses them without typer."""

    module: str
    help: str

    def run(self, arguments: list[str]) -> None:
        """Import the module and do the command."""
        import_module(self.module).main(arguments)


LIGHT = {
    "detect": Light("steadyolo.cli.detect", "Find things on pictures, videos and cameras with a served model."),
    "serve": Light("steadyolo.cli.serve", "Serve models over HTTP, warm from the first request on."),
}


def run() -> None:
    """Entry point. Exit codes: 0 done, 1 failed, 2 the request was wrong, 75 interrupted after saving.

    130 is of an interrupt at the terminal that found nothing to save.
    """
    try:
        if len(sys.argv) > 1 and sys.argv[1] in LIGHT:
            LIGHT[sys.argv[1]].run(sys.argv[2:])
        else:
            from steadyolo.cli.commands import app

            app()
    except SteadyError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(EXIT_WRONG_REQUEST if isinstance(error, UserError) else EXIT_FAILED)
    except (MemoryError, ImportError) as error:
        words = str(error) or "out of memory"
        if isinstance(error, ImportError) and not any(told in words.lower() for told in _NO_ROOM_TO_LOAD):
            raise
        remedy = "raise the limit of this process (ulimit -v, its control group): torch alone takes gigabytes"
        sys.stderr.write(f"error: {words}\n  remedy: {remedy}\n")
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:  # before the command could see to it itself
        sys.exit(EXIT_INTERRUPTED)
    except OSError as error:
        if error.errno in {errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}:
            sys.stderr.write(f"error: {error}\n  remedy: name another path; a file is where a folder has to be\n")
            sys.exit(EXIT_WRONG_REQUEST)
        if error.errno not in {errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO}:
            raise
        sys.stderr.write(f"error: {error}\n  remedy: make room or mend the disk; checkpoints that are there are kept\n")
        sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    run()

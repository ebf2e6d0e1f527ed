"""The command `steadyolo`: registers the commands, one file each, and turns errors into messages and exit codes."""

from __future__ import annotations

import errno
import sys

import typer

from steadyolo.cli import demo, doctor, export, plan, resume, runs, store, train
from steadyolo.errors import SteadyError, UserError

EXIT_FAILED, EXIT_WRONG_REQUEST = 1, 2
_NO_ROOM_TO_LOAD = ("failed to map segment", "cannot allocate memory")  # what a dynamic linker says

app = typer.Typer(
    name="steadyolo",
    help="YOLO training that survives: killed at any instant, it goes on exactly where it was.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command(name="train", context_settings={"ignore_unknown_options": True}, epilog=train.settings_help())(train.train)
app.command(name="resume", context_settings={"ignore_unknown_options": True})(resume.resume)
app.command(name="plan", context_settings={"ignore_unknown_options": True})(plan.plan)
app.command(name="export")(export.export)
app.command(name="demo")(demo.demo)
app.command(name="doctor")(doctor.doctor)
app.add_typer(runs.runs_app, name="runs")
app.add_typer(store.store_app, name="store")


def run() -> None:
    """Entry point. Exit codes: 0 done, 1 failed, 2 the request was wrong, 75 interrupted after saving."""
    try:
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

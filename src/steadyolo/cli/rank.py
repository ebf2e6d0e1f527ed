"""One process of a run that has several: started by `steadyolo train` and `resume`, never by hand."""

from __future__ import annotations

import json
import sys

from steadyolo.cli.commands import app
from steadyolo.cli.main import run
from steadyolo.cli.train import start
from steadyolo.train.launch import end_with_launcher


def rank() -> None:
    """Train as one of several processes, as the request on standard input says."""
    end_with_launcher()
    start(json.load(sys.stdin), {})


if __name__ == "__main__":
    app.command(name="rank", hidden=True)(rank)
    sys.argv = ["steadyolo", "rank"]
    run()

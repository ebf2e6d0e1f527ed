"""The tools of `make check`, so that the whole test suite is the whole gate."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.style.tree import ROOT

TOOLS = {
    "format": ["ruff", "format", "--check", "."],
    "lint": ["ruff", "check", "."],
    "types": ["mypy"],
    "layers": ["lint-imports"],
}


@pytest.mark.slow
@pytest.mark.parametrize("gate", TOOLS)
def test_gate(gate: str) -> None:
    name, *arguments = TOOLS[gate]
    tool = Path(sys.executable).with_name(name)
    environment = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run(
        [str(tool), *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr

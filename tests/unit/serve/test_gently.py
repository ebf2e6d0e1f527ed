"""Work that comes after other work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TELL = """
import os
from steadyolo.serve.gently import step_back
step_back(10)
step_back(5)  # it does not come forward again
print(os.getpriority(os.PRIO_PROCESS, 0), open("/proc/self/autogroup").read().split()[-1])
"""


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="sessions are not grouped here")
@pytest.mark.parametrize(("is_first", "expected"), [(True, "10 10"), (False, "10 0")])
def test_a_session_steps_back_with_its_first_process(is_first: bool, expected: str) -> None:
    """One that is not the first of its session leaves the others of it alone."""
    told = subprocess.run(
        [sys.executable, "-c", TELL], capture_output=True, text=True, check=True, start_new_session=is_first
    )
    assert told.stdout.strip() == expected

"""Work that comes after other work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TELL = """
import os
from steadyolo.serve.gently import step_back
os.nice(3)  # as a service of a low priority is started
before = os.getpriority(os.PRIO_PROCESS, 0)
step_back(10)
step_back(0)  # it does not come forward again
after = os.getpriority(os.PRIO_PROCESS, 0)
print(after == min(before + 10, 19))
if os.path.exists("/proc/self/autogroup"):  # where there are no groups, niceness is all there is
    print(open("/proc/self/autogroup").read().split()[-1])
"""


@pytest.mark.parametrize(("is_first", "expected"), [(True, "10"), (False, "0")])
def test_a_session_steps_back_with_its_first_process(is_first: bool, expected: str) -> None:
    """From where it was started; one that is not the first of its session leaves the others of it alone."""
    script = TELL if is_first else f"import os, sys\nif os.fork():\n    sys.exit(os.wait()[1])\n{TELL}"
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, start_new_session=True
    )
    is_grouped = Path("/proc/self/autogroup").exists()
    assert told.stdout.split() == (["True", expected] if is_grouped else ["True"])

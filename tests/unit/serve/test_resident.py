"""Memory that a worker has in use."""

from __future__ import annotations

import os
import subprocess
import sys

from steadyolo.serve.spawning import _KEPT_MEMORY

TELL = """
from steadyolo.serve.resident import resident_bytes
from steadyolo.state.host_memory import trim_freed_memory
before = resident_bytes()
freed = [bytearray(1 << 20) for _ in range(48)]  # less than is kept
freed.clear()
kept = resident_bytes() - before
trim_freed_memory()
print(kept >> 20, resident_bytes() - before >> 20)
"""


def test_what_is_kept_for_the_next_picture_can_be_given_back() -> None:
    told = subprocess.run(
        [sys.executable, "-c", TELL], capture_output=True, text=True, check=True, env={**os.environ, **_KEPT_MEMORY}
    )
    kept_mib, left_mib = map(int, told.stdout.split())
    if "CS_GNU_LIBC_VERSION" in os.confstr_names:  # other allocators keep less to begin with
        assert kept_mib > 40, "nothing was kept, so this proves nothing"
    assert left_mib < 8

"""Memory that a worker has in use."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from steadyolo.serve.spawning import _KEPT_MEMORY

TELL = """
from steadyolo.serve.resident import give_back, resident_bytes
before = resident_bytes()
freed = [bytearray(1 << 20) for _ in range(48)]  # less than is kept
freed.clear()
kept = resident_bytes() - before
give_back()
print(kept >> 20, resident_bytes() - before >> 20)
"""


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="another allocator than glibc's")
def test_what_is_kept_for_the_next_picture_can_be_given_back() -> None:
    told = subprocess.run(
        [sys.executable, "-c", TELL], capture_output=True, text=True, check=True, env={**os.environ, **_KEPT_MEMORY}
    )
    kept_mib, left_mib = map(int, told.stdout.split())
    assert kept_mib > 40, "nothing was kept, so this proves nothing"
    assert left_mib < 8

"""What a process may take of a host, read from the files of machines that are made up here."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from steadyolo.adapters.memory.host import held_by_this_process, host_memory, own_limits, proportional_bytes

KIB, MIB, GIB = 2**10, 2**20, 2**30
MACHINE = {
    "proc/meminfo": "MemTotal:       16777216 kB\nMemFree: 1 kB\nMemAvailable:    8388608 kB\n",
    "proc/self/status": "Name:\tpython\nVmSize:\t 4194304 kB\nVmRSS:\t 1048576 kB\nVmData:\t 2097152 kB\n",
}
V2 = {
    "proc/self/cgroup": "0::/pod/container\n",
    "sys/fs/cgroup/pod/container/memory.max": f"{6 * GIB}\n",
    "sys/fs/cgroup/pod/container/memory.current": f"{3 * GIB}\n",
    "sys/fs/cgroup/pod/container/memory.stat": f"anon 1\ninactive_file {GIB}\nactive_file 7\n",
}


def machine(root: Path, *parts: dict[str, str]) -> Path:
    for files in (MACHINE, *parts):
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("parts", "limits", "free_gib", "total_gib", "limit"),
    [
        ([], {}, 9, 16, "MemAvailable"),  # what is available, and the GiB that the process holds already
        ([V2], {}, 5, 6, "control group container"),  # 6 less 3, of which 1 is idle file cache, and its own
        (
            [V2, {"sys/fs/cgroup/pod/memory.max": f"{4 * GIB}\n", "sys/fs/cgroup/pod/memory.current": f"{4 * GIB}\n"}],
            {},
            1,
            4,
            "control group pod",
        ),  # the group above has nothing left
        ([V2, {"sys/fs/cgroup/pod/container/memory.high": f"{4 * GIB}\n"}], {}, 3, 4, "control group container"),
        ([V2, {"sys/fs/cgroup/pod/container/memory.max": "max\n"}], {}, 9, 16, "MemAvailable"),
        (
            [
                {
                    "proc/self/cgroup": "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n",
                    "sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes": f"{3 * GIB}\n",
                    "sys/fs/cgroup/memory/docker/x/memory.usage_in_bytes": f"{2 * GIB}\n",
                    "sys/fs/cgroup/memory/docker/x/memory.stat": f"cache 9\ntotal_inactive_file {512 * MIB}\n",
                    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                    "sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n",
                }
            ],
            {},
            2.5,
            3,
            "control group x",
        ),
        ([], {"RLIMIT_AS": 6 * GIB}, 3, 16, "RLIMIT_AS"),  # 4 of 6 are reserved: 2 more, and its own
        ([], {"RLIMIT_DATA": 3 * GIB}, 2, 16, "RLIMIT_DATA"),
        ([], {"RLIMIT_AS": 2 * GIB}, 1, 16, "RLIMIT_AS"),  # less than it has: nothing more
        ([V2], {"RLIMIT_AS": 5 * GIB}, 2, 6, "RLIMIT_AS"),
    ],
)
def test_the_tightest_bound_counts(
    tmp_path: Path, parts: list[dict[str, str]], limits: dict[str, int], free_gib: float, total_gib: int, limit: str
) -> None:
    found = host_memory(machine(tmp_path, *parts), limits=limits)
    assert found.free_bytes == free_gib * GIB
    assert found.total_bytes == total_gib * GIB
    assert limit in found.limit


def test_a_machine_that_tells_nothing_has_no_room(tmp_path: Path) -> None:
    assert host_memory(tmp_path, limits={}).free_bytes == 0


def test_this_process_is_measured() -> None:
    ballast = bytearray(64 * MIB)
    ballast[:: 4 * KIB] = b"1" * len(ballast[:: 4 * KIB])
    held = held_by_this_process()
    assert held.resident_bytes > len(ballast)
    assert held.address_bytes > held.resident_bytes
    assert len(ballast) < proportional_bytes() <= held.resident_bytes * 1.1
    assert proportional_bytes(Path("/proc/0")) == 0


def test_the_limits_of_a_process_are_its_bounds() -> None:
    program = "from steadyolo.adapters.memory.host import host_memory; m = host_memory(); print(m.free_bytes, m.limit)"

    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (GIB, GIB))

    done = subprocess.run(
        [sys.executable, "-c", program], preexec_fn=bound, capture_output=True, text=True, check=True, timeout=60
    )
    free_bytes, limit = done.stdout.split(maxsplit=1)
    assert 0 < int(free_bytes) < GIB
    assert "RLIMIT_AS" in limit
    assert "RLIMIT_AS" not in own_limits()

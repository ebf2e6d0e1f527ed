"""Processes that are started together end together, and a signal to their launcher reaches each of them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from steadyolo.train import launch as launching
from steadyolo.train.launch import launch

READ = "import os, signal, sys, time; rank = int(os.environ['RANK']); said = sys.stdin.read(); "


def run(code: str, *, num_ranks: int = 2, request: bytes = b"hello") -> int:
    return launch([sys.executable, "-c", READ + code], num_ranks=num_ranks, request=request)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ((0, 0), 0),
        ((75, 75), 75),
        ((2, 1), 2),  # rank 0 says what was wrong
        ((1, 75), 1),
        ((0, 3), 1),  # the run is not whole
    ],
)
def test_the_run_ends_as_rank_0_does(codes: tuple[int, int], expected: int) -> None:
    assert run(f"sys.exit({codes}[rank])") == expected


def test_a_killed_process_is_a_failure() -> None:
    assert run("os.kill(os.getpid(), signal.SIGKILL) if rank == 0 else None") == 1
    assert run("os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else None") == 1


def test_each_process_is_told_its_place_and_the_request(tmp_path: Path) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")
    code = f"open(f'{tmp_path}/{{rank}}', 'w').write(' '.join([said, *(os.environ[n] for n in {names})]))"
    assert run(code, num_ranks=3) == 0
    assert [(tmp_path / str(rank)).read_text() for rank in range(3)] == [
        f"hello {rank} {rank} 3 127.0.0.1" for rank in range(3)
    ]


def test_one_that_outlives_a_failure_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "_LEAVING_S", 0.3)
    started = time.monotonic()
    assert run("sys.exit(1) if rank else time.sleep(60)") == 1
    assert time.monotonic() - started < 20.0


LAUNCHER = """
import sys
from steadyolo.train.launch import launch
sys.exit(launch([sys.executable, "-c", sys.argv[1]], num_ranks=int(sys.argv[2]), request=b""))
"""


def test_a_signal_reaches_every_process(tmp_path: Path) -> None:
    code = READ + (
        f"signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75)); open(f'{tmp_path}/{{rank}}', 'w').write('x'); "
        "time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", LAUNCHER, code, "2"])
    wait_for(tmp_path / "0", tmp_path / "1")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(20) == 75


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_no_process_outlives_its_launcher(tmp_path: Path) -> None:
    code = (
        "import os, time; from steadyolo.train.launch import end_with_launcher; end_with_launcher(); "
        f"open(f'{tmp_path}/' + os.environ['RANK'], 'w').write(str(os.getpid())); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", LAUNCHER, code, "1"])
    wait_for(tmp_path / "0")
    process.kill()
    process.wait()
    wait_until_gone(int((tmp_path / "0").read_text()))


def wait_for(*paths: Path) -> None:
    """Return once something is written in each of them."""
    deadline_s = time.monotonic() + 60.0
    while not all(path.exists() and path.stat().st_size for path in paths):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def wait_until_gone(pid: int) -> None:
    deadline_s = time.monotonic() + 10.0
    while is_running(pid):
        assert time.monotonic() < deadline_s, f"process {pid} is still there"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"  # nobody may have asked for its end yet

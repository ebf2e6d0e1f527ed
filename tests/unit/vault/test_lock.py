from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from steadyolo.errors import UserError
from steadyolo.vault.lock import RunLock

HOLD = """
import sys, time
from pathlib import Path
from steadyolo.vault.lock import RunLock
with RunLock(Path(sys.argv[1])):
    if "fork" in sys.argv:
        import os
        if os.fork() == 0:
            os.write(1, b"%d\\n" % os.getpid())
            time.sleep(60)
            os._exit(0)
    else:
        print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path, *extra: str) -> subprocess.Popen[str]:
    """A process that holds the lock."""
    return subprocess.Popen([sys.executable, "-c", HOLD, str(folder), *extra], stdout=subprocess.PIPE, text=True)


def test_a_second_process_is_refused_and_a_kill_frees(tmp_path: Path) -> None:
    with holder(tmp_path) as child:
        assert child.stdout and child.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by process {child.pid} on ") as caught:
            RunLock(tmp_path).acquire()
        assert f"kill {child.pid}" in caught.value.remedy
        child.send_signal(signal.SIGKILL)
        assert child.wait(10) == -signal.SIGKILL
    with RunLock(tmp_path):
        assert f'"pid": {os.getpid()}' in (tmp_path / "lock").read_text()


def test_a_forked_child_does_not_hold_it(tmp_path: Path) -> None:
    with holder(tmp_path, "fork") as child:
        assert child.stdout
        worker = int(child.stdout.readline())
        child.kill()
        child.wait(10)
        try:
            os.kill(worker, 0)  # it lives on, as a loader worker may
            with RunLock(tmp_path):
                pass
        finally:
            os.kill(worker, signal.SIGKILL)


def test_the_same_process_is_refused_too(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    with lock, pytest.raises(UserError, match=f"process {os.getpid()}"):
        RunLock(tmp_path).acquire()
    with lock:
        with pytest.raises(UserError, match=f"process {os.getpid()}"):
            lock.acquire()
        lock.release()
        lock.release()
        RunLock(tmp_path).acquire().release()


def test_what_cannot_be_locked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be locked"):
        RunLock(tmp_path / "nowhere").acquire()


def test_an_unreadable_record_is_no_reason_to_crash(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        (tmp_path / "lock").write_text("torn{")
        with pytest.raises(UserError, match="another process"):
            RunLock(tmp_path).acquire()

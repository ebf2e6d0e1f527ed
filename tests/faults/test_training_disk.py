"""A disk that becomes full while a run trains stops its saves, not the run; when there is room again it saves again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from steadyolo.vault.checkpoints import Checkpoints
from tests.faults.runs import checkpoints, full_disk_while, happened, make_at, remove_at, table
from tests.faults.uninterrupted import Reference


def test_a_run_trains_on_while_the_disk_is_full_and_saves_when_it_is_not(reference: Reference, tmp_path: Path) -> None:
    run, full = tmp_path / "run", tmp_path / "full"
    prepare = (
        partial(full_disk_while, full),
        partial(make_at, "on_train_batch_end", 3, full),
        partial(remove_at, "on_train_batch_end", 10, full),
    )
    outcome = reference.start(run, prepare=prepare).wait().expect(0)
    refused = full.with_suffix(".was").read_text().count("refused")
    failed = happened(run, "save_failed")
    assert refused, "no write was refused, so this proves nothing"
    assert failed
    assert all("No space left on device" in event["error"] for event in failed)
    assert "training goes on" in outcome.output
    committed = [event["time"] for event in happened(run, "save_committed")]
    assert max(committed) > failed[-1]["time"], "nothing was saved after room was made"
    assert reference.differing(run) == []
    assert not list(run.rglob("*.partial*"))
    for name in Checkpoints(run / "steadyolo" / "checkpoints", writer_id="reader").committed():
        Checkpoints(run / "steadyolo" / "checkpoints", writer_id="reader").verify(name)


def test_a_disk_that_stays_full_loses_only_what_came_after(reference: Reference, tmp_path: Path) -> None:
    """The run ends without error; what was acknowledged before is whole, and resume goes on from it exactly."""
    run, full = tmp_path / "run", tmp_path / "full"
    prepare = (partial(full_disk_while, full), partial(make_at, "on_train_batch_end", 7, full))
    outcome = reference.start(run, prepare=prepare).wait()
    assert full.read_text().count("refused"), "no write was refused, so this proves nothing"
    assert "Traceback" not in outcome.output
    assert outcome.exit_code == 1, "a run whose result could not be kept is not done"
    assert "No space left on device" in outcome.output
    assert len(table(run)) >= 1
    kept = checkpoints(run)
    for checkpoint in kept:
        Checkpoints(checkpoint.parent, writer_id="reader").verify(checkpoint.name)
    reference.resume(run).wait().expect(0)
    assert happened(run, "resumed")[-1]["name"] == kept[-1].name
    assert reference.differing(run) == []


# --- a file system that is really full ---


def mounting() -> list[str] | None:
    """The command that runs a shell which may mount, or None where neither kind is allowed."""
    for unshare in (["unshare", "-m"], ["unshare", "-Urm"]):
        probe = [*unshare, "sh", "-c", "mount -t tmpfs -o size=64k tmpfs /mnt"]
        if shutil.which("unshare") and subprocess.run(probe, check=False, capture_output=True).returncode == 0:
            return [*unshare, "sh", "-ec"]
    return None


ROOM = "24m"  # enough for the checkpoints of a small run; then it is filled to the last byte


def test_a_small_file_system_that_is_really_full(reference: Reference, tmp_path: Path) -> None:
    shell = mounting()
    if shell is None:
        pytest.skip("no right to mount a small file system here, neither as root nor in a user namespace")
    project, seen = tmp_path / "small", tmp_path / "seen"
    project.mkdir()
    words = reference.words(project / "run", epochs=2)
    train = [sys.executable, "-m", "steadyolo.cli.main", *words]
    script = (
        f"mount -t tmpfs -o size={ROOM} tmpfs '{project}'; "
        f'code=0; "$@" > "{tmp_path}/log" 2>&1 || code=$?; '
        f"df --output=avail '{project}' | tail -1 > '{tmp_path}/left'; "
        f"cp -r '{project}' '{seen}'; exit $code"
    )
    filler = tmp_path / "sitecustomize.py"
    filler.write_text(FILL.format(path=str(project / "filler")))
    environment = {"PYTHONPATH": ":".join([str(tmp_path), *filter(None, sys.path)])}
    import os

    ended = subprocess.run([*shell, script, "sh", *train], env=os.environ | environment, check=False, timeout=200)
    output = (tmp_path / "log").read_text()
    run = seen / "run"
    failed = happened(run, "save_failed")
    assert failed, output[-3000:]
    assert any("No space left on device" in event["error"] for event in failed)
    assert ended.returncode == 0, output[-3000:]
    assert "Traceback" not in output
    committed = happened(run, "save_committed")
    assert max(event["time"] for event in committed) > failed[0]["time"], "nothing was saved after room was made"
    assert json.loads((run / "steadyolo" / "finished.json").read_text())["epochs"] == 2
    assert reference.differing(run, epochs=2) == []


# Read by the interpreter at its start: fills the disk after the third batch, and makes room after the sixth.
FILL = """
def install():
    import os
    from ultralytics.utils.callbacks import default_callbacks

    seen = []

    def fill_and_free(trainer):
        seen.append(1)
        if len(seen) == 3:
            try:
                with open({path!r}, "wb", buffering=0) as file:
                    while True:
                        file.write(b"x" * 4096)
            except OSError:
                pass
        if len(seen) == 6:
            os.unlink({path!r})

    default_callbacks["on_train_batch_end"].append(fill_and_free)


import importlib.abc, importlib.machinery, sys


class AfterTrainer(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "steadyolo.adapters.ultralytics.trainer":
            sys.meta_path.remove(self)
            install()
        return None


sys.meta_path.insert(0, AfterTrainer())
"""

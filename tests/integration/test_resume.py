"""What may be resumed, what is refused, and what can be seen of a run."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.faults.runs import Child, checkpoints, die_at, happened, in_child, state_of, steadyolo, table
from tests.faults.uninterrupted import Reference
from tests.integration.ways_in import train_in_python

EXIT_WRONG_REQUEST = 2


@pytest.fixture(scope="module")
def interrupted(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in its second epoch. Tests take copies of it."""
    run = tmp_path_factory.mktemp("interrupted") / "run"
    reference.start(run, prepare=(partial(die_at, "on_train_batch_end", 6),)).wait().expect(-signal.SIGKILL)
    return run


@pytest.fixture
def run(interrupted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(interrupted, tmp_path / "moved"))


@pytest.fixture
def finished(reference: Reference, tmp_path: Path) -> Path:
    return Path(shutil.copytree(reference.uninterrupted().run, tmp_path / "finished"))


def refuse(*words: object, log: Path) -> str:
    """What a command says that refuses a request: one error with a remedy, and no traceback."""
    output = steadyolo(*words, log=log).expect(EXIT_WRONG_REQUEST).output
    assert "error: " in output
    assert "  remedy: " in output
    assert "Traceback" not in output
    return output


# --- going on ---


def test_a_run_that_was_moved_goes_on_where_it_lies(run: Path, reference: Reference, tmp_path: Path) -> None:
    steadyolo("resume", run, log=tmp_path / "log").expect(0)
    assert reference.differing(run) == []
    assert (run / "weights" / "best.pt").exists()


def test_a_run_goes_on_through_the_trainer_class(run: Path, reference: Reference, tmp_path: Path) -> None:
    act = partial(train_in_python, reference.words(run), steady=True, told=tmp_path / "told", through_resume=run)
    in_child(act, log=tmp_path / "log").expect(0)
    assert reference.differing(run) == []


def test_another_number_of_workers_changes_nothing(run: Path, reference: Reference, tmp_path: Path) -> None:
    steadyolo("resume", run, "workers=2", log=tmp_path / "log").expect(0)
    assert reference.differing(run) == []


def test_a_run_killed_before_its_first_checkpoint_begins_again(reference: Reference, tmp_path: Path) -> None:
    run = tmp_path / "run"
    die = partial(die_at, "on_pretrain_routine_end", 1)
    reference.start(run, prepare=(die,)).wait().expect(-signal.SIGKILL)
    assert not checkpoints(run)
    reference.resume(run).wait().expect(0)
    assert reference.differing(run) == []


def test_a_finished_run_is_refused_unless_more_epochs_are_asked_for(finished: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in checkpoints(finished))
    message = refuse("resume", finished, log=tmp_path / "log")
    assert "is finished: 3 of 3 epochs" in message
    assert "epochs=N" in message
    assert sorted(path.name for path in checkpoints(finished)) == before

    steadyolo("resume", finished, "epochs=5", log=tmp_path / "log").expect(0)
    assert [row["epoch"] for row in table(finished)] == ["1", "2", "3", "4", "5"]
    assert table(finished)[:3] == table(finished)[:3]
    assert state_of(checkpoints(finished)[-1])["epochs_closed"] == 5
    assert "is finished: 5 of 5 epochs" in refuse("resume", finished, "epochs=5", log=tmp_path / "log")


def test_more_epochs_do_not_depend_on_how_often_the_run_was_interrupted(reference: Reference, tmp_path: Path) -> None:
    """Two epochs and then two more: the same whether or not the second half is killed."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    shutil.copytree(reference.uninterrupted(epochs=2).run, whole)
    shutil.copytree(whole, killed)
    reference.resume(whole, "epochs=4").wait().expect(0)
    die = partial(die_at, "on_train_batch_end", 6)
    reference.resume(killed, "epochs=4", prepare=(die,)).wait().expect(-signal.SIGKILL)
    reference.resume(killed).wait().expect(0)
    from tests.faults.runs import differing, digests

    assert differing(digests(whole), digests(killed)) == []
    assert len(table(killed)) == 4


def test_patience_ends_a_run_early_and_more_patience_goes_on(reference: Reference, tmp_path: Path) -> None:
    run = tmp_path / "run"
    reference.start(run, task="classify", patience=1, epochs=6).wait().expect(0)
    stopped_at = len(table(run))
    assert stopped_at < 6
    assert happened(run, "run_stopped")[-1]["reason"] == "early_stopping"
    assert "stopped early" in refuse("resume", run, log=tmp_path / "log")
    steadyolo("resume", run, "patience=50", log=tmp_path / "log").expect(0)
    assert len(table(run)) == 6
    assert reference.differing(run, "classify", epochs=6) == []


# --- what is refused ---


def test_a_data_set_that_changed_is_refused_unless_allowed(
    boards: Callable[[str], Path], reference: Reference, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(boards("detect").parent, tmp_path / "data"))
    (data / "data.yaml").write_text((data / "data.yaml").read_text().replace(str(boards("detect").parent), str(data)))
    for cache in data.rglob("*.cache"):
        cache.unlink()
    run = tmp_path / "run"
    words = [f"data={data / 'data.yaml'}" if word.startswith("data=") else word for word in reference.words(run)]
    die = partial(die_at, "on_train_batch_end", 5)
    Child(words, log=tmp_path / "log", prepare=(die,)).wait().expect(-signal.SIGKILL)
    newest = checkpoints(run)[-1].name

    label = sorted((data / "labels" / "train").glob("*.txt"))[0]
    label.write_text(label.read_text() + "0 0.5 0.5 0.1 0.1\n")
    message = refuse("resume", run, log=tmp_path / "log")
    assert f"the dataset {data / 'data.yaml'} is not the one this run was made from" in message
    assert "allow=dataset" in message
    assert checkpoints(run)[-1].name == newest

    (data / "images" / "train" / "board_000003.jpg").unlink()
    assert "it had 14 images, now it has 13" in refuse("resume", run, log=tmp_path / "log")

    steadyolo("resume", run, "allow=dataset", log=tmp_path / "log").expect(0)
    assert len(table(run)) == 3


@pytest.mark.parametrize("package", ["torch", "ultralytics"])
def test_other_package_versions_are_refused_unless_allowed(package: str, run: Path, tmp_path: Path) -> None:
    change = partial(pretend_version, package, "1.2.3")
    output = steadyolo("resume", run, log=tmp_path / "log", prepare=(change,)).expect(EXIT_WRONG_REQUEST).output
    assert package in output
    assert "1.2.3 now" in output
    assert "allow=versions" in output
    assert "Traceback" not in output
    steadyolo("resume", run, "allow=versions", log=tmp_path / "log", prepare=(change,)).expect(0)


def test_a_changed_minor_package_is_a_warning(run: Path, reference: Reference, tmp_path: Path) -> None:
    outcome = steadyolo("resume", run, log=tmp_path / "log", prepare=(partial(pretend_version, "opencv", "1.2.3"),))
    assert "opencv was" in outcome.expect(0).output
    assert reference.differing(run) == []


def pretend_version(package: str, version: str) -> None:
    import steadyolo.adapters.ultralytics.opening as opening
    import steadyolo.adapters.ultralytics.planning as planning

    true = opening.package_versions
    opening.package_versions = planning.package_versions = lambda: {**true(), package: version}


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("batch=8", "batch cannot change"),
        ("lr0=0.5", "lr0 cannot change"),
        ("imgsz=96", "imgsz cannot change"),
        ("seed=3", "seed cannot change"),
        ("memory.micro_batch=2", "memory.micro_batch"),
        ("precision.compute=fp32", "precision.compute"),
        ("allow=anything", "allow=anything is unknown"),
        ("epoch=5", "did you mean epochs"),
    ],
)
def test_a_change_of_what_is_learned_is_refused(word: str, named: str, run: Path, tmp_path: Path) -> None:
    newest = checkpoints(run)[-1].name
    assert named in refuse("resume", run, word, log=tmp_path / "log")
    assert checkpoints(run)[-1].name == newest


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    assert "is not a folder" in refuse("resume", tmp_path / "nothing", log=tmp_path / "log")
    assert "is not a steadyolo run" in refuse("resume", tmp_path, log=tmp_path / "log")


def test_one_process_at_a_time_works_on_a_run(run: Path, reference: Reference, tmp_path: Path) -> None:
    from tests.faults.runs import pause_at

    flag = tmp_path / "reached"
    first = Child(
        ["resume", run], log=tmp_path / "first.log", prepare=(partial(pause_at, "on_train_batch_start", 1, flag, 3.0),)
    )
    first.wait_for(flag)
    message = refuse("resume", run, log=tmp_path / "log")
    assert f"{run / 'steadyolo'} is in use by process" in message
    first.wait().expect(0)
    assert reference.differing(run) == []


def test_the_lock_is_needed(run: Path, tmp_path: Path) -> None:
    """Without it a second process works in the same folder."""
    from tests.faults.runs import pause_at

    flag = tmp_path / "reached"
    pause = partial(pause_at, "on_train_batch_start", 1, flag, 60.0)
    first = Child(["resume", run], log=tmp_path / "first.log", prepare=(pause,))
    first.wait_for(flag)
    steadyolo("resume", run, log=tmp_path / "log", prepare=(without_lock,)).expect(0)
    assert first.is_running
    first.send(signal.SIGKILL)
    first.wait().expect(-signal.SIGKILL)


def without_lock() -> None:
    import fcntl

    fcntl.flock = lambda fd, operation: None


# --- what can be seen ---


def test_runs_are_listed_and_shown(run: Path, finished: Path, tmp_path: Path) -> None:
    listed = json.loads(steadyolo("runs", "ls", tmp_path, "--json", log=tmp_path / "log").expect(0).output)
    states = {Path(one["name"]).name: one["state"] for one in listed}
    assert states == {"moved": "killed", "finished": "finished"}
    assert "moved" in steadyolo("runs", "ls", tmp_path, log=tmp_path / "log").expect(0).output

    shown = json.loads(steadyolo("runs", "show", finished, "--verify", "--json", log=tmp_path / "log").expect(0).output)
    assert [one["name"] for one in shown["checkpoints"]] == [path.name for path in checkpoints(finished)]
    assert all(one["verified"] for one in shown["checkpoints"]), shown["checkpoints"]
    assert steadyolo("runs", "show", run, log=tmp_path / "log").expect(0).output


def test_a_damaged_checkpoint_is_shown_as_such(finished: Path, tmp_path: Path) -> None:
    newest = checkpoints(finished)[-1]
    data = bytearray((newest / "ema.safetensors").read_bytes())
    data[-1] ^= 255
    (newest / "ema.safetensors").write_bytes(data)
    output = steadyolo("runs", "show", finished, "--verify", log=tmp_path / "log").output
    assert "BAD" in output
    assert "ema.safetensors" in "".join(output.split()), "the table does not say what is wrong"


@pytest.mark.parametrize("command", ["", "train", "resume", "demo", "runs", "runs ls", "runs show", "doctor"])
def test_every_command_has_help_with_an_example(command: str, tmp_path: Path) -> None:
    output = steadyolo(*command.split(), "--help", log=tmp_path / "log").expect(0).output
    assert "Usage" in output
    if command and command != "runs":
        assert "Example" in output
    if command == "train":
        assert "save.every" in output


def test_a_run_says_what_it_was_made_from(finished: Path) -> None:
    made_from = json.loads((checkpoints(finished)[-1] / "state.json").read_text())["made_from"]
    assert made_from["spec"] == json.loads((finished / "steadyolo" / "spec.json").read_text())
    assert made_from["plan"] == json.loads((finished / "steadyolo" / "plan.json").read_text())
    assert {"torch", "ultralytics", "numpy", "steadyolo"} <= set(made_from["versions"])
    assert len(made_from["dataset"]["fingerprint"]) == len(hashlib.sha256().hexdigest())

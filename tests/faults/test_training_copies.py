"""Training with copies in real stores: a machine that is lost, a store that dies, two machines that both go on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from steadyolo.adapters.objects.opening import open_store
from steadyolo.spec.location import parse_location
from steadyolo.vault.remote_run import RemoteRun
from steadyolo.vault.upkeep import verify_all
from tests.faults.runs import Child, checkpoints, happened, steadyolo
from tests.faults.uninterrupted import Reference
from tests.servers.seaweed import ADMIN, READER, Identity, SeaweedServer, aws_variables


def with_variables(variables: dict[str, str]) -> None:
    """Give a child these variables in the place of those that it was forked with."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update(variables)


@pytest.fixture
def as_admin(aws: None) -> tuple[Callable[[], None], ...]:
    return (partial(with_variables, aws_variables(ADMIN)),)


def resume_url(url: str, project: Path, *more: object, prepare: tuple[Callable[[], None], ...]) -> Child:
    project.mkdir(parents=True, exist_ok=True)
    return Child(["resume", url, f"project={project}", *more], log=project / "resume.log", prepare=prepare)


def wait_until(is_so: Callable[[], bool], child: Child, timeout_s: float = 100.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not is_so():
        assert child.is_running, child.wait().output[-3000:]
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.02)


def copies_of(url: str, name: str) -> RemoteRun:
    return RemoteRun(open_store(parse_location(url)), name)


@pytest.mark.parametrize(("kind", "num_copies"), [("s3", 2), ("s3", 5), ("sealed", 3), ("folder", 4)])
def test_a_machine_that_is_lost_costs_nothing_that_was_copied(
    kind: str,
    num_copies: int,
    reference: Reference,
    tmp_path: Path,
    s3_url: str,
    as_admin: tuple[Callable[[], None], ...],
) -> None:
    """SIGKILL, the run folder deleted, and on with one command on a machine that has nothing but the package."""
    key = tmp_path / "key"
    key.write_text(os.urandom(32).hex())
    url = {"s3": s3_url, "sealed": f"{s3_url}&key={key}", "folder": f"file://{tmp_path}/disk"}[kind]
    run = tmp_path / "one" / "lost"
    run.parent.mkdir()
    child = reference.start(run, prepare=(*as_admin, partial(slow_batches, 0.4)), store__url=url)
    wait_until(lambda: len(happened(run, "copy_verified")) >= num_copies, child)
    child.send(signal.SIGKILL)
    assert child.wait().exit_code == -signal.SIGKILL
    shutil.rmtree(run.parent)

    there = str(parse_location(url).inside("lost"))
    resume_url(there, tmp_path / "two", prepare=as_admin).wait().expect(0)
    again = tmp_path / "two" / "lost"
    assert reference.differing(again) == []
    assert (again / "weights" / "best.pt").exists()
    assert (again / "args.yaml").exists()
    assert happened(again, "resumed"), "it began anew, which proves nothing"
    assert verify_all(copies_of(url, "lost")).bad == ()


def test_a_store_that_is_lost_with_the_machine_leaves_the_replica(
    reference: Reference,
    tmp_path: Path,
    own_seaweed: SeaweedServer,
    replica: SeaweedServer,
    as_admin: tuple[Callable[[], None], ...],
    prefix: str,
) -> None:
    """Two servers; SIGKILL to the trainer and to the first of them, the run folder deleted."""
    run = tmp_path / "one" / "lost"
    run.parent.mkdir()
    url, second = own_seaweed.url(prefix), replica.url(prefix)
    prepare = (*as_admin, partial(slow_batches, 0.4))
    child = reference.start(run, prepare=prepare, store__url=url, store__replica=second)

    def verified(tier: str) -> int:
        return sum(event["tier"] == tier for event in happened(run, "copy_verified"))

    wait_until(lambda: verified("store") >= 2 and verified("replica") >= 2, child)
    child.send(signal.SIGKILL)
    assert child.wait().exit_code == -signal.SIGKILL
    own_seaweed.kill()
    shutil.rmtree(run.parent)

    there = str(parse_location(second).inside("lost"))
    outcome = resume_url(there, tmp_path / "two", "store.drain=1s", prepare=as_admin).wait()
    assert outcome.expect(0)
    again = tmp_path / "two" / "lost"
    assert "comes from the replica" in outcome.output
    assert reference.differing(again) == []
    assert happened(again, "resumed"), "it began anew, which proves nothing"
    assert "store" in {event["tier"] for event in happened(again, "copy_failed")}
    assert {event["tier"] for event in happened(again, "copy_verified")} == {"replica"}
    assert verify_all(copies_of(second, "lost")).bad == ()


def test_copies_are_needed(reference: Reference, tmp_path: Path) -> None:
    """The control: without a store, a machine that is lost takes everything with it."""
    run = tmp_path / "lost"
    child = reference.start(run)
    wait_until(lambda: len(happened(run, "save_committed")) >= 2, child)
    child.send(signal.SIGKILL)
    child.wait()
    shutil.rmtree(run)
    outcome = steadyolo("resume", f"file://{tmp_path}/disk/lost", log=tmp_path / "resume.log")
    assert outcome.expect(2)
    assert "is not a run that steadyolo keeps" in outcome.output


def test_of_two_machines_that_both_go_on_the_later_one_does(
    reference: Reference, tmp_path: Path, s3_url: str, as_admin: tuple[Callable[[], None], ...]
) -> None:
    run = tmp_path / "one" / "twice"
    run.parent.mkdir()
    pause = partial(slow_batches, 0.4)
    first = reference.start(run, prepare=(*as_admin, pause), store__url=s3_url)
    wait_until(lambda: len(happened(run, "copy_verified")) >= 3, first)
    second = resume_url(str(parse_location(s3_url).inside("twice")), tmp_path / "two", prepare=as_admin)
    ended = first.wait()
    assert ended.exit_code == 1, ended.output[-3000:]
    assert "taken over" in ended.output
    assert [event["kind"] for event in happened(run)].count("taken_over") == 1
    assert happened(run, "run_stopped")[-1]["reason"] == "taken_over"
    assert checkpoints(run), "nothing was lost here either"
    second.wait().expect(0)
    assert reference.differing(tmp_path / "two" / "twice") == []

    again = Child(["resume", run], log=tmp_path / "again.log", prepare=as_admin).wait()
    assert again.exit_code == 2, "the first machine, started again by some script, does not take the run back"
    assert "went on elsewhere" in again.output


def slow_batches(seconds: float) -> None:
    """Each batch takes longer, so that what happens beside training has the time."""
    from tests.faults.runs import on_event

    on_event("on_train_batch_end", partial(_sleep, seconds))


def _sleep(seconds: float, *_: object) -> None:
    time.sleep(seconds)


def test_a_store_that_dies_and_comes_back_never_stops_training(
    reference: Reference, tmp_path: Path, own_seaweed: SeaweedServer, as_admin: tuple[Callable[[], None], ...]
) -> None:
    run, url = tmp_path / "run", own_seaweed.url("runs")
    child = reference.start(run, prepare=(*as_admin, partial(slow_batches, 0.3)), store__url=url)
    wait_until(lambda: bool(happened(run, "copy_verified")), child)
    own_seaweed.kill()
    wait_until(lambda: bool(happened(run, "copy_failed")), child)
    own_seaweed.restart()
    child.wait().expect(0)
    assert reference.differing(run) == []
    copies = copies_of(url, "run")
    assert copies.copies()[-1].name == checkpoints(run)[-1].name, "the queue caught up"
    assert verify_all(copies).bad == ()


def test_a_store_that_is_down_all_the_time_costs_a_run_nothing(
    reference: Reference, tmp_path: Path, as_admin: tuple[Callable[[], None], ...]
) -> None:
    run = tmp_path / "run"
    url = "s3://nobody/there?endpoint=http://127.0.0.1:9"
    outcome = reference.start(run, prepare=as_admin, store__url=url, store__drain="1s").wait().expect(0)
    assert reference.differing(run) == []
    assert happened(run, "copy_failed")
    assert "store push" in outcome.output


def test_a_signal_leaves_time_for_the_last_copy(
    reference: Reference, tmp_path: Path, s3_url: str, as_admin: tuple[Callable[[], None], ...]
) -> None:
    run = tmp_path / "run"
    child = reference.start(run, prepare=as_admin, store__url=s3_url)
    wait_until(lambda: len(happened(run, "step_done")) >= 1, child)
    child.send(signal.SIGTERM)
    started_s = time.monotonic()
    child.wait().expect(75)
    assert time.monotonic() - started_s < 25
    assert copies_of(s3_url, "run").copies()[-1].name == checkpoints(run)[-1].name


def test_a_signal_is_met_in_time_though_the_store_never_answers(
    reference: Reference, tmp_path: Path, as_admin: tuple[Callable[[], None], ...]
) -> None:
    """It accepts connections and says nothing: each request takes until its time is out, which is minutes."""
    run = tmp_path / "run"
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        url = f"s3://nobody/there?endpoint=http://127.0.0.1:{server.getsockname()[1]}"
        child = reference.start(run, prepare=(*as_admin, partial(slow_batches, 0.2)), store__url=url)
        wait_until(lambda: len(happened(run, "step_done")) >= 1, child)
        assert happened(run, "copy_failed"), "no fault happened, so this proves nothing"
        child.send(signal.SIGTERM)
        started_s = time.monotonic()
        child.wait().expect(75)
        assert time.monotonic() - started_s < 25
    assert happened(run, "run_stopped")[-1]["reason"] == "interrupted", "it left in order"


def test_credentials_that_expire_and_are_renewed(
    reference: Reference, tmp_path: Path, seaweed: SeaweedServer, aws: None, prefix: str
) -> None:
    """They come from a shared credentials file, which somebody replaces; the run hears of it without a restart."""
    file = tmp_path / "credentials"
    variables = {**aws_variables(None), "AWS_SHARED_CREDENTIALS_FILE": str(file)}
    write_credentials(file, ADMIN)
    run, url = tmp_path / "run", seaweed.url(prefix)
    prepare = (partial(with_variables, variables), partial(slow_batches, 0.4), believe_nothing)
    child = reference.start(run, prepare=prepare, store__url=url)
    wait_until(lambda: bool(happened(run, "copy_verified")), child)
    write_credentials(file, Identity(name="gone", access_key="STEADYGONE", secret_key="steady-gone-SECRET"))
    wait_until(lambda: bool(happened(run, "copy_failed")), child)
    write_credentials(file, ADMIN)
    outcome = child.wait().expect(0)
    assert copies_of(url, "run").copies()[-1].name == checkpoints(run)[-1].name
    told = outcome.output + "".join(path.read_text(errors="replace") for path in run.rglob("*.json*"))
    for secret in (ADMIN.secret_key, ADMIN.access_key, "steady-gone-SECRET"):
        assert secret not in told
    assert "does not know the credentials" in json.dumps(happened(run, "copy_failed"))


def write_credentials(file: Path, identity: Identity) -> None:
    text = f"[default]\naws_access_key_id = {identity.access_key}\naws_secret_access_key = {identity.secret_key}\n"
    file.with_suffix(".new").write_text(text)
    file.with_suffix(".new").replace(file)


def believe_nothing() -> None:
    """Each request looks at the credentials anew, in the child; elsewhere that is every five minutes."""
    from datetime import timedelta

    from steadyolo.adapters.objects import opening

    opening._CREDENTIALS_TTL = timedelta(0)


BAD_PLACES = {
    "wrong bucket": ("s3://no-such-bucket/x?endpoint={endpoint}", ADMIN, "does not exist", "check the bucket"),
    "no permission": ("s3://{bucket}/x?endpoint={endpoint}", READER, "no permission", "give the role"),
    "wrong secret": (
        "s3://{bucket}/x?endpoint={endpoint}",
        Identity(name="a", access_key=ADMIN.access_key, secret_key="steady-wrong-SECRET"),
        "secret of the credentials is wrong",
        "check the secret",
    ),
    "nobody": ("s3://{bucket}/x?endpoint={endpoint}", None, "no credentials", "give this machine a role"),
    "unknown scheme": ("s33://bucket/x", ADMIN, "s33://", "did you mean s3://"),
}


@pytest.mark.parametrize("what", BAD_PLACES)
def test_a_place_that_cannot_be_used_is_refused_before_anything_starts(
    what: str, reference: Reference, tmp_path: Path, seaweed: SeaweedServer
) -> None:
    from tests.servers.seaweed import BUCKET

    text, identity, message, remedy = BAD_PLACES[what]
    url = text.format(endpoint=seaweed.endpoint, bucket=BUCKET)
    run = tmp_path / "run"
    prepare = (partial(with_variables, aws_variables(identity)),)
    outcome = reference.start(run, prepare=prepare, store__url=url).wait()
    assert outcome.exit_code == 2, outcome.output[-2000:]
    assert message in outcome.output
    assert remedy in outcome.output
    assert "Traceback" not in outcome.output
    assert checkpoints(run) == []
    assert identity is None or identity.secret_key not in outcome.output

"""`steadyolo store` and data sets in stores, as a user meets them: the real commands against a real store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from steadyolo.adapters.objects.opening import open_store
from steadyolo.spec.location import parse_location
from steadyolo.vault.remote_run import RemoteRun
from tests.faults.runs import checkpoints, happened, steadyolo
from tests.faults.stores import run_folder, upload_all
from tests.faults.test_training_copies import with_variables
from tests.faults.uninterrupted import Reference
from tests.servers.metadata import metadata_server
from tests.servers.seaweed import ADMIN, aws_variables


@pytest.fixture
def kept(tmp_path: Path, s3_url: str) -> str:
    """A store with one run, `train`, of three small checkpoints."""
    folder = tmp_path / "train"
    upload_all(open_store(parse_location(s3_url)), folder, run_folder(folder, 1, 2, 3))
    return s3_url


def told(tmp_path: Path, *words: object, code: int = 0) -> dict[str, object]:
    """What a `store` command says as JSON."""
    log = tmp_path / "command.log"
    as_admin = partial(with_variables, aws_variables(ADMIN))
    output = steadyolo("store", *words, "--json", log=log, prepare=(as_admin,)).expect(code).output
    return dict(json.loads(output.strip().splitlines()[-1]))


def spoil(url: str, step: int) -> str:
    store = open_store(parse_location(url))
    key = next(listed.key for listed in store.list("") if f"{step:08d}.w" in listed.key and "model" in listed.key)
    data = bytes(store.get(key).data)
    store.put(key, data[:-1] + bytes([data[-1] ^ 1]))
    return key


def test_ls_names_runs_and_copies(kept: str, tmp_path: Path) -> None:
    (run,) = told(tmp_path, "ls", kept)["runs"]  # type: ignore[misc]
    assert run["name"] == "train"
    assert [copy["name"][:13] for copy in run["copies"]] == ["step-00000001", "step-00000002", "step-00000003"]
    assert told(tmp_path, "ls", parse_location(kept).inside("train"))["runs"] == [run]


def test_verify_finds_what_is_bad(kept: str, tmp_path: Path) -> None:
    assert told(tmp_path, "verify", kept)["ok"] is True
    key = spoil(kept, 2)
    (run,) = told(tmp_path, "verify", kept, code=1)["runs"]  # type: ignore[misc]
    assert key.rpartition("/")[2] in json.dumps(run["bad"])


def test_prune_is_a_dry_run_unless_told(kept: str, tmp_path: Path) -> None:
    (run,) = told(tmp_path, "prune", kept, "--keep-last", 1)["runs"]  # type: ignore[misc]
    assert len(run["deleted"]) == 2
    copies = RemoteRun(open_store(parse_location(kept)), "train").copies
    assert len(copies()) == 3
    told(tmp_path, "prune", kept, "--keep-last", 1, "--apply")
    assert [copy.label for copy in copies()] == run["kept"]


def test_drill_and_restore_bring_the_newest_good_one(kept: str, tmp_path: Path) -> None:
    spoil(kept, 3)
    url = parse_location(kept).inside("train")
    drill = told(tmp_path, "drill", url)
    assert str(drill["checkpoint"]).startswith("step-00000002")
    assert "step-00000003" in json.dumps(drill["rejected"])
    restored = told(tmp_path, "restore", url, "--into", tmp_path / "back")
    assert Path(str(restored["folder"])) == tmp_path / "back" / "train"
    assert (tmp_path / "back" / "train" / "results.csv").exists()
    assert [path.name for path in checkpoints(tmp_path / "back" / "train")] == [drill["checkpoint"]]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("ls", "s4://x"), 2, "s4://"),
        (("restore", "{url}/nothing"), 2, "is not a run that steadyolo keeps"),
        (("verify", "file:///nowhere/at/all"), 2, "no run is kept"),
        (("scrub", "{url}", "--share", "7"), 2, "share of 7"),
        (("push", "/nowhere"), 2, "not a steadyolo run"),
    ],
)
def test_what_cannot_be_done_is_said(
    words: tuple[str, ...], code: int, message: str, kept: str, tmp_path: Path
) -> None:
    place = parse_location(kept)
    said = [word.replace("{url}/nothing", str(place.inside("nothing"))).replace("{url}", kept) for word in words]
    as_admin = partial(with_variables, aws_variables(ADMIN))
    outcome = steadyolo("store", *said, log=tmp_path / "log", prepare=(as_admin,)).expect(code)
    assert message in outcome.output
    assert "remedy:" in outcome.output
    assert "Traceback" not in outcome.output


def test_push_sends_what_an_outage_left_behind(reference: Reference, tmp_path: Path, s3_url: str, aws: None) -> None:
    run = tmp_path / "late"
    as_admin = partial(with_variables, aws_variables(ADMIN))
    down = "s3://nobody/there?endpoint=http://127.0.0.1:9"
    started = reference.start(run, prepare=(as_admin,), epochs=1, store__url=down, store__drain="1s")
    started.wait().expect(0)
    spec = run / "steadyolo" / "spec.json"
    spec.write_text(spec.read_text().replace(json.dumps(down)[1:-1], s3_url))
    steadyolo("store", "push", run, log=tmp_path / "push.log", prepare=(as_admin,)).expect(0)
    there = RemoteRun(open_store(parse_location(s3_url)), "late")
    assert there.copies()[-1].name == checkpoints(run)[-1].name


def test_a_data_set_from_a_store_gives_the_same_run(
    reference: Reference, boards: Callable[[str], Path], tmp_path: Path, s3_url: str, aws: None
) -> None:
    """Trained from the store, killed by nobody, on another machine: the same bytes as from the disk."""
    store, root = open_store(parse_location(s3_url)), boards("detect").parent
    for path in root.rglob("*"):
        if path.is_file() and path.suffix != ".cache":
            store.put(f"pcb/{path.relative_to(root).as_posix()}", path.read_bytes())
    run = tmp_path / "run"
    words = [word for word in reference.words(run) if not word.startswith("data=")]
    as_admin = partial(with_variables, aws_variables(ADMIN))
    cache = tmp_path / "cache"
    data = f"data={parse_location(s3_url).inside('pcb')}"
    steadyolo(*words, data, f"data.cache={cache}", log=tmp_path / "log", prepare=(as_admin,)).expect(0)
    assert reference.differing(run) == []
    assert data.removeprefix("data=") in (run / "args.yaml").read_text()
    shutil.rmtree(cache)
    steadyolo("resume", run, "epochs=4", log=tmp_path / "log", prepare=(as_admin,)).expect(0)
    assert list(cache.rglob("*.jpg")), "it was fetched again"


def test_a_notice_of_the_cloud_saves_copies_and_stops(
    reference: Reference, tmp_path: Path, s3_url: str, aws: None
) -> None:
    run = tmp_path / "spot"
    with metadata_server("aws") as server:
        variables = {**aws_variables(ADMIN), "STEADYOLO_METADATA": server.told}
        child = reference.start(run, prepare=(partial(with_variables, variables),), epochs=200, store__url=s3_url)
        child.wait_for(run / "steadyolo" / "events.jsonl")
        server.bodies["/latest/meta-data/spot/instance-action"] = (
            '{"action": "terminate", "time": "2099-01-01T00:00:00Z"}'
        )
        child.wait().expect(75)
    assert happened(run, "preemption_notice")
    assert RemoteRun(open_store(parse_location(s3_url)), "spot").copies()[-1].name == checkpoints(run)[-1].name

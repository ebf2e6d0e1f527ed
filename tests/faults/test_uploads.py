"""Copies under faults: what counts is whole, what was sent is not sent again, and nobody writes over a successor.

Each test proves that its fault happened. The control next to it shows what the protection is for.
"""

from __future__ import annotations

import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from steadyolo.adapters.objects.opening import open_store
from steadyolo.errors import SteadyError, Transient, UserError
from steadyolo.events import CopyFailed
from steadyolo.spec.location import parse_location
from steadyolo.testing import network_faults as faults
from steadyolo.testing.fault_proxy import FaultProxy
from steadyolo.testing.memory_store import MemoryStore
from steadyolo.vault.checkpoints import Checkpoints
from steadyolo.vault.copy import Copy
from steadyolo.vault.folder_store import FolderStore
from steadyolo.vault.newest import newest_of_all
from steadyolo.vault.objects import Stored
from steadyolo.vault.patience import Patience
from steadyolo.vault.remote_run import RemoteRun
from steadyolo.vault.restore import bring_best, restore_run
from steadyolo.vault.session import take_place
from steadyolo.vault.upkeep import plan_pruning, prune, scrub, verify_all
from steadyolo.vault.writer import BackgroundWriter
from tests.faults.disks import is_same, snapshot, step_of
from tests.faults.runs import in_child
from tests.faults.stores import (
    Watched,
    claim,
    dies_at,
    name_of,
    run_folder,
    upload_all,
    uploader,
)
from tests.servers.seaweed import SeaweedServer


def patient(seconds: float = 30.0) -> Patience:
    return Patience(seconds)


def flaws(run: RemoteRun) -> list[str]:
    """What is wrong with the copies that count."""
    reading = verify_all(run)
    return [f"{bad.what}: {bad.why}" for bad in reading.bad if bad.what != "copies"]  # that there is none is no flaw


def restored(runs: dict[str, RemoteRun], folder: Path) -> Checkpoints:
    found = restore_run(runs, folder, patience=patient()).found
    assert found.snapshot is not None
    assert is_same(found.snapshot, snapshot(step_of(found.snapshot.name)))
    return Checkpoints(folder / "steadyolo" / "checkpoints", writer_id="reader")


# --- killed ---


def upload_and_die(root: Path, folder: Path, nth: int) -> None:
    """Send all of a folder, dying at the `nth` thing that is asked of the store. Runs in a child."""
    store = Watched(FolderStore(root), dies_at(nth))
    upload_all(store, folder, Checkpoints(folder / "steadyolo" / "checkpoints", writer_id="w1"), keep_last=2)


def num_calls(folder: Path) -> int:
    store = Watched(MemoryStore())
    upload_all(store, folder, Checkpoints(folder / "steadyolo" / "checkpoints", writer_id="w1"), keep_last=2)
    return len(store.calls)


def test_a_kill_at_any_call_of_an_upload_leaves_whole_copies(quick_path: Path) -> None:
    """Claiming, listing, sending, confirming, the manifest, the mirror, deleting old ones: each call, and after it."""
    folder = quick_path / "train"
    run_folder(folder, 1, 2, 3)
    total = num_calls(folder)
    assert total > 40
    kills = 0
    for nth in range(1, total + 1, 3):
        root = quick_path / f"store{nth}"
        died = in_child(partial(upload_and_die, root, folder, nth), log=quick_path / "child.log")
        assert died.exit_code == -signal.SIGKILL, died.output
        kills += 1
        run = RemoteRun(FolderStore(root), "train")
        assert flaws(run) == []
        counted = run.copies()
        upload_all(
            FolderStore(root), folder, Checkpoints(folder / "steadyolo" / "checkpoints", writer_id="w1"), keep_last=2
        )
        assert set(counted) <= set(run.copies()), "what counted is still there"
        assert [copy.name for copy in run.copies()] == [name_of(2), name_of(3)]
        shutil.rmtree(root)
    assert kills > 15


def test_a_manifest_put_last_is_needed(quick_path: Path) -> None:
    """The control: with the manifest first, a kill leaves a copy that counts and is not whole."""
    folder = quick_path / "train"
    checkpoints = run_folder(folder, 1)
    store = MemoryStore()
    run = upload_all(store, folder, checkpoints)
    manifest = {key: stored for key, stored in store.objects.items() if key.endswith("1.w000001/manifest.json")}
    store.objects = {key: it for key, it in store.objects.items() if "/checkpoints/" not in key} | manifest
    assert run.copies(), "it counts"
    assert flaws(run) != []


def prune_and_die(root: Path, nth: int) -> None:
    run = RemoteRun(Watched(FolderStore(root), dies_at(nth)), "train")
    prune(run, plan_pruning(RemoteRun(FolderStore(root), "train"), 1))


def test_a_prune_that_is_killed_at_any_step_leaves_whole_copies(quick_path: Path) -> None:
    folder, whole = quick_path / "train", quick_path / "whole"
    upload_all(FolderStore(whole), folder, run_folder(folder, 1, 2, 3))
    pruning = plan_pruning(RemoteRun(FolderStore(whole), "train"), 1)
    assert [copy.name for copy in pruning.copies] == [name_of(1), name_of(2)]
    kills, nth = 0, -1
    while True:
        nth += 2
        root = quick_path / f"store{nth}"
        shutil.copytree(whole, root)
        ended = in_child(partial(prune_and_die, root, nth), log=quick_path / "child.log")
        run = RemoteRun(FolderStore(root), "train")
        assert flaws(run) == []
        assert run.copies()[-1].name == name_of(3), "what was to be kept is kept"
        if ended.exit_code == 0:
            break
        assert ended.exit_code == -signal.SIGKILL, ended.output
        kills += 1
        take_place(run.store, "train", claim(2, "w2"), is_ours=True)  # the next session; what the last one left may go
        prune(run, plan_pruning(run, 1))
        assert [copy.name for copy in run.copies()] == [name_of(3)]
        assert run.orphans() == [], "what was left is gone"
    assert kills > 10


def restore_and_die(root: Path, into: Path, nth: int) -> None:
    restore_run({"store": RemoteRun(Watched(FolderStore(root), dies_at(nth)), "train")}, into, patience=patient())


def test_a_restore_that_is_killed_at_any_call_goes_on(quick_path: Path) -> None:
    folder, root = quick_path / "train", quick_path / "store"
    upload_all(FolderStore(root), folder, run_folder(folder, 1, 2))
    run, kills, nth = RemoteRun(FolderStore(root), "train"), 0, 0
    while True:
        nth += 1
        into = quick_path / f"restored{nth}"
        ended = in_child(partial(restore_and_die, root, into, nth), log=quick_path / "child.log")
        assert restored({"store": run}, into).committed() == [name_of(2)]
        assert (into / "weights" / "best.pt").read_bytes() == b"weights"
        if ended.exit_code == 0:
            break
        assert ended.exit_code == -signal.SIGKILL, ended.output
        kills += 1
        shutil.rmtree(into)
    assert kills > 10


# --- a network, a server ---

FAULTS: dict[str, tuple[faults.Fault, int]] = {
    "slow": (faults.Latency(0.05), 20),
    "reset": (faults.Reset(), 3),
    "reset in the middle": (faults.Reset(is_midway=True), 3),
    "lost answer": (faults.LostAnswer(is_reset=True), 5),
    "429": (faults.Answer(429, fields=(("Retry-After", "1"),)), 3),
    "500": (faults.Answer(500), 4),
    "503": (faults.Answer(503), 4),
    "503 after it was done": (faults.Answer(503, is_committed=True), 4),
    "truncated": (faults.Truncated(), 2),
    "flipped": (faults.Flipped(), 2),
    "error page": (faults.ErrorPage(), 2),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("where", ["data", "manifest", "claim"])
def test_what_a_network_does_to_an_upload_is_survived(
    fault: str, where: str, seaweed: SeaweedServer, aws: None, prefix: str, fault_proxy: FaultProxy, tmp_path: Path
) -> None:
    folder = tmp_path / "train"
    checkpoints = run_folder(folder, 1)
    store = open_store(parse_location(seaweed.url(prefix, endpoint=fault_proxy.endpoint)))
    key = {"data": "model.safetensors", "manifest": ".w000001/manifest.json", "claim": "writer.json"}[where]
    what, times = FAULTS[fault]
    rule = fault_proxy.inject(what, key=key, times=times)
    sender, told = uploader(store, folder, checkpoints)
    sender.flush()
    for _ in range(60):
        if sender.drain(0):
            break
        sender.work_once()
    assert sender.drain(0), told
    clean = RemoteRun(open_store(parse_location(seaweed.url(prefix))), "train")
    assert [copy.name for copy in clean.copies()] == [name_of(1)]
    assert flaws(clean) == []
    if where == "claim" or not isinstance(what, faults.NEED_A_BODY):
        assert rule.num_hits, "no fault happened, so this proves nothing"


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != "lost answer"])
def test_what_a_network_does_to_a_restore_is_survived(
    fault: str, seaweed: SeaweedServer, aws: None, prefix: str, fault_proxy: FaultProxy, tmp_path: Path
) -> None:
    """An answer that fails is asked for again; a body that is wrong is not believed, and the copy before is taken."""
    folder = tmp_path / "train"
    upload_all(open_store(parse_location(seaweed.url(prefix))), folder, run_folder(folder, 1, 2))
    what, times = FAULTS[fault]
    rule = fault_proxy.inject(what, method="GET", key=f"{name_of(2)}.w000001/model", times=times)
    run = RemoteRun(open_store(parse_location(seaweed.url(prefix, endpoint=fault_proxy.endpoint))), "train")
    committed = restored({"store": run}, tmp_path / "there").committed()
    assert rule.num_hits, "no fault happened, so this proves nothing"
    is_spoilt = isinstance(what, faults.Flipped | faults.ErrorPage)
    assert committed[-1] == (name_of(1) if is_spoilt else name_of(2))


def test_a_store_that_is_killed_and_restarted_is_caught_up_with(
    own_seaweed: SeaweedServer, aws: None, tmp_path: Path
) -> None:
    folder = tmp_path / "train"
    checkpoints = run_folder(folder, 1)
    store = open_store(parse_location(own_seaweed.url("runs")))
    sender, told = uploader(store, folder, checkpoints)
    assert sender.work_once() == 0
    own_seaweed.kill()
    checkpoints.commit(snapshot(2), parent=None)
    sender.offer(name_of(2), 1000, best=None)
    assert sender.work_once() > 0
    assert any(isinstance(event, CopyFailed) for event in told), "no fault happened, so this proves nothing"
    own_seaweed.restart()
    run = upload_all(store, folder, checkpoints)
    assert [copy.name for copy in run.copies()] == [name_of(1), name_of(2)]
    assert flaws(run) == []


# --- what is left when places are lost ---


def three_tiers(folder: Path, *steps: int) -> tuple[dict[str, MemoryStore], dict[str, RemoteRun]]:
    checkpoints = run_folder(folder, *steps)
    stores = {tier: MemoryStore(f"memory://{tier}") for tier in ("disk", "store", "replica")}
    return stores, {tier: upload_all(store, folder, checkpoints) for tier, store in stores.items()}


def spoil(store: MemoryStore, label: str) -> None:
    key = next(key for key in store.objects if label in key and "model" in key)
    data = store.objects[key].data
    store.objects[key] = Stored(data=data[:-1] + bytes([data[-1] ^ 1]), tag="spoilt")


@pytest.mark.parametrize("num_bad", [1, 2, 3, 4])
def test_the_newest_is_taken_from_whatever_place_is_left(num_bad: int, tmp_path: Path) -> None:
    """The newest checkpoint is corrupt in the run folder, then in one more tier, until it is whole in one only."""
    folder = tmp_path / "train"
    stores, runs = three_tiers(folder, 1, 2)
    checkpoints = Checkpoints(folder / "steadyolo" / "checkpoints", writer_id="reader")
    places = ["run folder", *runs]
    path = checkpoints.root / name_of(2) / "model.safetensors"
    path.write_bytes(b"?" * path.stat().st_size)
    for tier in places[1:num_bad]:
        spoil(stores[tier], Copy(1, name_of(2)).label)
    found = newest_of_all(checkpoints, runs, token_of=lambda _: 1, patience=patient())
    assert found.snapshot is not None
    expected = places[num_bad] if num_bad < 4 else "run folder"
    assert [(rejected.tier, rejected.name) for rejected in found.rejected] == [
        (tier, name_of(2)) for tier in places[:num_bad]
    ], "each bad one is named"
    assert found.tier == expected
    step = 2 if num_bad < 4 else 1
    assert is_same(found.snapshot, snapshot(step))
    assert checkpoints.newest_verified().snapshot is not None, "and it is in the run folder now"


def test_a_run_that_is_taken_back_keeps_what_it_saves_from_then_on(tmp_path: Path) -> None:
    """This machine had saved steps 8 and 9 when another took the run over after step 2, and saved step 3."""
    folder = tmp_path / "train"
    checkpoints = run_folder(folder, 1, 2, 8, 9)
    store = MemoryStore()
    theirs = run_folder(tmp_path / "theirs" / "train", 3)
    take_place(store, "train", claim(2, "w2"), is_ours=False)
    run = RemoteRun(store, "train")
    run.upload(theirs.root / name_of(3), Copy(2, name_of(3)), claim=claim(2, "w2"))
    found = newest_of_all(checkpoints, {"store": run}, token_of=lambda _: 1, patience=patient())
    assert found.snapshot is not None
    assert found.snapshot.name == name_of(3)
    assert [rejected.name for rejected in found.rejected] == [name_of(8), name_of(9)], "this is said"

    writer = BackgroundWriter(checkpoints, keep_last=2, parent=name_of(3))
    writer.submit(snapshot(4))
    assert writer.close(timeout_s=30)
    assert checkpoints.committed() == [name_of(3), name_of(4)]
    assert len(list(checkpoints.root.glob("*.bad-*"))) == 2, "nothing was lost here either"


@pytest.mark.parametrize("num_silent", [1, 2])
def test_a_place_that_falls_silent_is_passed_over_for_one_that_has_the_same_copy(
    num_silent: int, tmp_path: Path
) -> None:
    stores, runs = three_tiers(tmp_path / "train", 1, 2)

    def fall_silent(operation: str, key: str) -> None:
        if name_of(2) in key and "safetensors" in key:
            raise Transient("the network is down", remedy="wait")

    watched = {tier: Watched(store, fall_silent) for tier, store in list(stores.items())[1:][:num_silent]}
    runs = {"replica": runs["replica"]} | {tier: RemoteRun(store, "train") for tier, store in watched.items()}
    runs = dict(sorted(runs.items(), reverse=True))
    if num_silent == 2:
        with pytest.raises(Transient):  # never an older one, without a word
            restore_run(runs, tmp_path / "there", patience=patient(0.1))
    else:
        found = restore_run(runs, tmp_path / "there", patience=patient(0.1)).found
        assert found.snapshot is not None
        assert (found.snapshot.name, found.tier) == (name_of(2), "replica")


def test_a_store_that_refuses_does_not_make_an_older_copy_the_newest(tmp_path: Path) -> None:
    """Credentials that expire on the way, a wrong key, an archive: nothing is wrong with the copy."""
    stores, _ = three_tiers(tmp_path / "train", 1, 2)

    def refuse(operation: str, key: str) -> None:
        if name_of(2) in key and "safetensors" in key:
            raise UserError("the token has expired", remedy="log in again")

    refusing = {"store": RemoteRun(Watched(stores["store"], refuse), "train")}
    with pytest.raises(UserError, match="expired"):
        restore_run(refusing, tmp_path / "there", patience=patient())
    both = refusing | {"replica": RemoteRun(stores["replica"], "train")}
    found = restore_run(both, tmp_path / "there", patience=patient()).found
    assert found.snapshot is not None
    assert (found.snapshot.name, found.tier) == (name_of(2), "replica")


def test_nothing_is_left_and_that_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    stores, runs = three_tiers(folder, 1)
    for store in stores.values():
        spoil(store, name_of(1))
    found = restore_run(runs, tmp_path / "there", patience=patient()).found
    assert found.snapshot is None
    assert [rejected.tier for rejected in found.rejected] == ["disk", "store", "replica"]


def with_best(folder: Path) -> dict[str, RemoteRun]:
    """A run whose best checkpoint is an older one than the newest, in two places."""
    checkpoints = run_folder(folder, 1)
    newest = snapshot(2)
    ledger = replace(newest.state.ledger, best_tick=int(name_of(1).rpartition(".")[2]))
    checkpoints.commit(replace(newest, state=replace(newest.state, ledger=ledger)), parent=None)
    return {tier: upload_all(MemoryStore(f"memory://{tier}"), folder, checkpoints) for tier in ("store", "replica")}


@pytest.mark.parametrize("num_bad", [0, 1, 2])
def test_the_best_is_restored_too_and_a_bad_one_costs_only_itself(num_bad: int, tmp_path: Path) -> None:
    runs = with_best(tmp_path / "train")
    for run in list(runs.values())[:num_bad]:
        assert isinstance(run.store, MemoryStore)
        spoil(run.store, name_of(1))
    again = restore_run(runs, tmp_path / "there", patience=patient())
    assert again.found.snapshot is not None
    assert again.found.snapshot.name == name_of(2)
    assert len(again.problems) == num_bad
    there = Checkpoints(tmp_path / "there" / "steadyolo" / "checkpoints", writer_id="reader")
    assert (name_of(1) in there.committed()) == (num_bad < 2)


def test_a_best_that_rots_in_the_run_folder_comes_from_a_store(tmp_path: Path) -> None:
    runs = with_best(tmp_path / "train")
    checkpoints = Checkpoints(tmp_path / "train" / "steadyolo" / "checkpoints", writer_id="reader")
    path = checkpoints.root / name_of(1) / "model.safetensors"
    path.write_bytes(b"?" * path.stat().st_size)
    found = newest_of_all(checkpoints, runs, token_of=lambda _: 1, patience=patient())
    assert len(bring_best(checkpoints, runs, found, patience=patient()).problems) == 1
    checkpoints.verify(name_of(1))


def test_a_foreign_folder_is_not_restored_into(tmp_path: Path) -> None:
    _, runs = three_tiers(tmp_path / "train", 1)
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    with pytest.raises(SteadyError, match="something else"):
        restore_run(runs, other, patience=patient())
    assert (other / "mine.txt").read_text() == "mine"


def test_scrubs_in_shares_read_everything(tmp_path: Path) -> None:
    stores, runs = three_tiers(tmp_path / "train", 1, 2, 3)
    run, store = runs["store"], stores["store"]
    parts = sum(len(run.manifest(copy).parts) for copy in run.copies())
    watched = Watched(store)
    for _ in range(12):
        assert scrub(RemoteRun(watched, "train"), 0.1).bad == ()
    read = {key for operation, key in watched.calls if operation == "get" and "/step-" in key}
    assert len(read) == parts + 3, "all parts and all manifests"
    spoil(store, Copy(1, name_of(2)).label)
    assert name_of(2) in next(bad.what for _ in range(12) for bad in scrub(run, 0.1).bad)


def test_verified_ones_only_count_for_pruning(tmp_path: Path) -> None:
    stores, runs = three_tiers(tmp_path / "train", 1, 2, 3)
    spoil(stores["store"], Copy(1, name_of(3)).label)
    pruning = plan_pruning(runs["store"], 1)
    assert [copy.name for copy in pruning.copies] == [name_of(1)], "the newest good one stays"
    assert [bad.what for bad in pruning.bad] == [Copy(1, name_of(3)).label]


def test_an_upload_that_ends_while_a_prune_is_decided_is_left_alone(tmp_path: Path) -> None:
    """A session sends what the one before committed, under that one's token: its parts look like left-overs."""
    stores, runs = three_tiers(tmp_path / "train", 1, 2)
    run, objects = runs["store"], stores["store"].objects
    take_place(run.store, "train", claim(2, "w2"), is_ours=True)
    manifest = next(key for key in objects if key.endswith(f"{Copy(1, name_of(2)).label}/manifest.json"))
    last = objects.pop(manifest)
    pruning = plan_pruning(run, 5)
    assert pruning.orphans, "nothing looked like a left-over, so this proves nothing"
    objects[manifest] = last
    prune(run, pruning)
    assert flaws(run) == []
    assert len(run.copies()) == 2


def test_verifying_before_pruning_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: without it, a bad copy pushes the last good one out."""
    stores, runs = three_tiers(tmp_path / "train", 1, 2)
    spoil(stores["store"], Copy(1, name_of(2)).label)
    monkeypatch.setattr(RemoteRun, "verify", lambda self, copy: 0)
    prune(runs["store"], plan_pruning(runs["store"], 1))
    monkeypatch.undo()
    assert flaws(runs["store"]) != []
    assert len(runs["store"].copies()) == 1


# --- two writers ---


def test_a_predecessor_that_comes_back_harms_nothing(tmp_path: Path) -> None:
    """It was cut off in the middle of an upload; its successor went on; then the network is back."""
    folder, theirs = tmp_path / "a" / "train", tmp_path / "b" / "train"
    checkpoints = run_folder(folder, 1, 2)
    store = MemoryStore()
    cut = Watched(store)
    sender, told = uploader(cut, folder, checkpoints)
    sender.work_once()

    def lose_network(operation: str, key: str) -> None:
        if operation == "put" and "optimizer" in key:
            cut.meet = lambda operation, key: (_ for _ in ()).throw(Transient("gone", remedy="wait"))

    checkpoints.commit(snapshot(3), parent=None)
    cut.meet = lose_network
    sender.offer(name_of(3), 1000, best=None)
    sender.work_once()

    successor = restored({"store": RemoteRun(store, "train")}, theirs)
    successor.commit(snapshot(5), parent=None)
    take_place(store, "train", claim(2, "w2"), is_ours=True)
    other = RemoteRun(store, "train")
    other.upload(successor.root / name_of(5), Copy(2, name_of(5)), claim=claim(2, "w2"))
    before = {key: stored for key, stored in store.objects.items() if "w000002" in key or key.endswith("writer.json")}

    cut.meet = lambda operation, key: None
    checkpoints.commit(snapshot(9), parent=None)
    sender.offer(name_of(9), 1000, best=None)
    for _ in range(5):
        sender.work_once()
    assert [event.kind for event in told].count("taken_over") == 1
    assert {key: store.objects[key] for key in before} == before, "nothing of the successor's was touched"
    assert other.copies()[-1] == Copy(2, name_of(5)), "and the newest is still the successor's"
    assert checkpoints.committed() == [name_of(step) for step in (1, 2, 3, 9)], "nothing was lost here either"


def test_the_fence_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: without it the predecessor goes on adding copies beside its successor's."""
    folder = tmp_path / "train"
    checkpoints = run_folder(folder, 1)
    store = MemoryStore()
    sender, _ = uploader(store, folder, checkpoints)
    sender.work_once()
    take_place(store, "train", claim(2, "w2"), is_ours=True)
    monkeypatch.setattr(RemoteRun, "check", lambda self, claim: None)
    checkpoints.commit(snapshot(9), parent=None)
    sender.offer(name_of(9), 1000, best=None)
    sender.work_once()
    assert [copy.name for copy in RemoteRun(store, "train").copies()] == [name_of(1), name_of(9)]

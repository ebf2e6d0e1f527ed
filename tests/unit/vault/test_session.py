from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from steadyolo.errors import SteadyError, Transient, UserError
from steadyolo.testing.memory_store import MemoryStore
from steadyolo.vault.objects import ObjectStore
from steadyolo.vault.remote_run import Fenced, RemoteRun
from steadyolo.vault.session import Session, TierRecord, open_session, take_place
from tests.faults.stores import Watched, run_folder


class Killed(BaseException):
    """The process ends here."""


def session(stores: Mapping[str, ObjectStore], folder: Path, writer_id: str, *, takeover: bool = False) -> Session:
    opened = open_session(stores, folder, writer_id, tiers={}, takeover=takeover, must_reach=False)
    assert opened is not None
    return opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run_folder(tmp_path / "train", 1)
    return tmp_path / "train"


def test_a_process_killed_while_it_claims_does_not_keep_its_successor_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write of the record is a place to die at; the claim is between the two."""
    store = MemoryStore()
    first = session({"store": store}, folder, "w1")
    write = TierRecord.write
    for number, nth in enumerate((1, 2), start=2):
        seen = 0

        def dies(self: TierRecord, own: Path, nth: int = nth, write: Callable[..., None] = write) -> None:
            nonlocal seen
            seen += 1
            if seen == nth:
                raise Killed
            write(self, own)

        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(TierRecord, "write", dies)
            session({"store": store}, folder, f"w{number}")
    owner = RemoteRun(store, "train").owner()
    assert owner is not None
    assert owner.claim.writer_id == "w3", "it had claimed when it died"
    assert session({"store": store}, folder, "w4").claim.token > owner.claim.token
    assert first.claim.token == 1


def test_a_claim_that_has_to_be_made_again_is_not_taken_for_somebody_elses(folder: Path) -> None:
    store, replica = MemoryStore("memory://a"), Watched(MemoryStore("memory://b"))
    before = session({"store": store, "replica": replica}, folder, "w1")
    num_met = 0

    def be_faster(operation: str, key: str) -> None:
        nonlocal num_met
        if operation == "put_if" and not num_met:
            num_met += 1
            raise Fenced("somebody was faster", remedy="read it again")

    replica.meet = be_faster
    assert session({"store": store, "replica": replica}, folder, "w2").claim.token > before.claim.token
    assert num_met == 1, "no fault happened, so this proves nothing"


def test_a_run_that_went_on_elsewhere_is_refused_though_the_store_was_down_at_a_restart_between(folder: Path) -> None:
    """That restart took the same token as the other machine did."""
    store = Watched(MemoryStore())
    first = session({"store": store}, folder, "w1")
    store.meet = down
    assert "store" in session({"store": store}, folder, "w2").unreachable
    store.meet = lambda operation, key: None
    elsewhere = first.record.places["store"].rpartition("/")[2]
    other = session_elsewhere(store, elsewhere, first)
    with pytest.raises(UserError, match="went on elsewhere"):
        session({"store": store}, folder, "w3")
    assert session({"store": store}, folder, "w4", takeover=True).claim.token > other


def test_a_place_that_is_empty_where_the_run_was_kept_is_not_begun_anew(folder: Path) -> None:
    """A disk that is not mounted: its folder is there, on the disk that dies with the machine."""
    disk = MemoryStore()
    session({"disk": disk}, folder, "w1")
    disk.objects.clear()
    opened = session({"disk": disk}, folder, "w2")
    assert "mount the disk" in opened.unreachable["disk"].remedy
    assert not disk.objects


def session_elsewhere(store: ObjectStore, name: str, first: Session) -> int:
    """Another machine takes the run over; returns its token."""
    from dataclasses import replace

    claim = replace(first.claim, token=first.claim.token + 1, writer_id="other")
    take_place(store, name, claim, is_ours=True)
    return claim.token


def down(operation: str, key: str) -> None:
    raise Transient("the network is down", remedy="wait")


@pytest.mark.parametrize("text", ["", "[]", "7", "{", '{"version": 1}', '{"version": 9}'])
def test_a_damaged_record_is_a_clear_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "tiers.json").write_text(text)
    with pytest.raises(SteadyError) as caught:
        TierRecord.read(tmp_path)
    assert "tiers.json" in str(caught.value)

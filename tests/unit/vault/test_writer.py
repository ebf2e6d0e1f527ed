from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from steadyolo.errors import Transient, UserError
from steadyolo.state.snapshot import Snapshot
from steadyolo.vault.checkpoints import Checkpoints, Committed
from steadyolo.vault.writer import BackgroundWriter
from tests.faults.disks import snapshot


def name(step: int) -> str:
    return snapshot(step).name


class Watch:
    """A writer whose exports wait at a gate, and everything it said."""

    def __init__(self, root: Path, **options: object) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()
        self.committed: list[str] = []
        self.failed: list[tuple[str, Exception]] = []
        self.released: list[str] = []
        self.exported: list[str] = []
        self.checkpoints = Checkpoints(root, writer_id="w1")
        hooks: dict[str, Callable[..., None]] = {
            "exports": self._export,
            "on_committed": lambda committed: self.committed.append(committed.name),
            "on_failed": lambda name, error: self.failed.append((name, error)),
            "release": lambda it: self.released.append(it.name),
        }
        self.writer = BackgroundWriter(self.checkpoints, **{**hooks, **options})  # type: ignore[arg-type]

    def _export(self, it: Snapshot) -> None:
        self.exported.append(it.name)
        self.started.set()
        self.gate.wait(10)

    def block(self) -> None:
        """Have the writer busy with snapshot 1."""
        self.gate.clear()
        self.writer.submit(snapshot(1))
        assert self.started.wait(10)


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    it = Watch(tmp_path)
    yield it
    it.gate.set()
    assert it.writer.close(timeout_s=10)


def test_a_submitted_snapshot_is_committed(watch: Watch) -> None:
    assert watch.writer.idle
    assert watch.writer.last_cost_s is None
    watch.writer.submit(snapshot(1))
    assert watch.writer.drain(10)
    assert watch.checkpoints.committed() == watch.committed == watch.released == watch.exported == [name(1)]
    assert watch.writer.newest_committed == name(1)
    assert watch.writer.last_cost_s is not None and watch.writer.last_cost_s > 0


def test_draining_gives_up_in_time(watch: Watch) -> None:
    watch.block()
    assert not watch.writer.idle
    assert not watch.writer.drain(0.01)
    assert not watch.writer.close(timeout_s=0.01)
    with pytest.raises(RuntimeError, match="closed"):
        watch.writer.submit(snapshot(2))


def test_the_newest_replaces_the_waiting_one(watch: Watch) -> None:
    watch.block()
    for step in (2, 3, 4):
        watch.writer.submit(snapshot(step))
    assert watch.released == [name(2), name(3)]
    watch.gate.set()
    assert watch.writer.drain(10)
    assert watch.committed == [name(1), name(4)]
    assert sorted(watch.released) == [name(step) for step in (1, 2, 3, 4)]
    assert watch.failed == []


def test_a_pinned_one_does_not_give_way(watch: Watch) -> None:
    watch.block()
    watch.writer.submit(snapshot(2), pin=True)
    watch.writer.submit(snapshot(3))
    watch.writer.submit(snapshot(4))
    watch.gate.set()
    assert watch.writer.drain(10)
    assert watch.committed == [name(1), name(2), name(4)]


def test_the_queue_is_bounded(watch: Watch) -> None:
    watch.block()
    for step in (2, 3, 4):
        watch.writer.submit(snapshot(step), pin=True)
    [(failed, error)] = watch.failed
    assert failed == name(2) and isinstance(error, Transient)
    assert watch.released == [name(2)]
    watch.gate.set()
    assert watch.writer.drain(10)
    assert watch.committed == [name(1), name(3), name(4)]


def test_old_ones_are_deleted_and_pinned_ones_are_not(tmp_path: Path) -> None:
    watch = Watch(tmp_path, keep_last=1)
    for step, pin in ((1, False), (2, True), (3, False), (4, False)):
        watch.writer.submit(snapshot(step), pin=pin)
        assert watch.writer.drain(10)
    assert watch.checkpoints.committed() == [name(2), name(4)]
    watch.writer.unpin(name(2))
    watch.writer.submit(snapshot(5))
    assert watch.writer.close(timeout_s=10)
    assert watch.checkpoints.committed() == [name(5)]


def test_pinned_and_parent_come_from_before(tmp_path: Path) -> None:
    before = Checkpoints(tmp_path, writer_id="w0")
    for step in (1, 2):
        before.commit(snapshot(step), parent=None)
    watch = Watch(tmp_path, keep_last=1, pinned=[name(1)], parent=name(2))
    assert watch.writer.newest_committed == name(2)
    watch.writer.submit(snapshot(3))
    assert watch.writer.close(timeout_s=10)
    assert watch.checkpoints.committed() == [name(1), name(3)]
    assert f'"parent": "{name(2)}"' in (tmp_path / name(3) / "manifest.json").read_text()


def test_a_failing_export_does_not_stop_the_commit(tmp_path: Path) -> None:
    def refuse(_: Snapshot) -> None:
        raise OSError("no export today")

    watch = Watch(tmp_path, exports=refuse)
    watch.writer.submit(snapshot(1))
    assert watch.writer.close(timeout_s=10)
    assert [(failed, str(error)) for failed, error in watch.failed] == [(name(1), "no export today")]
    assert watch.committed == [name(1)]


def test_a_failed_commit_is_told_and_the_next_one_works(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    root.write_text("in the way")
    watch = Watch(root)
    watch.writer.submit(snapshot(1))
    assert watch.writer.drain(10)
    [(failed, error)] = watch.failed
    assert failed == name(1) and isinstance(error, Transient)
    assert watch.released == [name(1)]
    root.unlink()
    watch.writer.submit(snapshot(2))
    assert watch.writer.close(timeout_s=10)
    assert watch.committed == [name(2)]


def test_hooks_that_raise_do_no_harm(tmp_path: Path) -> None:
    def explode(*_: object) -> None:
        raise ValueError("broken listener")

    def on_committed(committed: Committed) -> None:
        explode(committed)

    watch = Watch(tmp_path, exports=explode, on_committed=on_committed, on_failed=explode, release=explode)
    for step in (1, 2):
        watch.writer.submit(snapshot(step))
        assert watch.writer.drain(10)
    assert watch.writer.close(timeout_s=10)
    assert watch.checkpoints.committed() == [name(1), name(2)]


@pytest.mark.parametrize("options", [{"keep_last": 0}, {"max_waiting": 0}])
def test_nonsense_is_refused(options: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 1"):
        BackgroundWriter(Checkpoints(tmp_path, writer_id="w1"), **options)  # type: ignore[arg-type]

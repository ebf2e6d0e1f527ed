"""What the tests of saving share: tiny snapshots, children that die, disks without protection, and the one check."""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import torch

from steadyolo.errors import DataLoss, UserError
from steadyolo.state.run_state import Cursor, RunState
from steadyolo.state.snapshot import Snapshot, checkpoint_name
from steadyolo.testing.faulty_disk import KillingCalls, WatchedCalls
from steadyolo.vault.checkpoints import Checkpoints
from steadyolo.vault.disk import Disk, LocalDisk
from steadyolo.vault.files import replace_file
from steadyolo.vault.writer import BackgroundWriter

KEEP_LAST = 2
CHILDREN = multiprocessing.get_context("forkserver")  # forked from a process without threads, torch already loaded
CHILDREN.set_forkserver_preload(["__main__", "steadyolo.vault.writer", "safetensors.torch"])


# --- what is saved ---


def snapshot(step: int) -> Snapshot:
    """A run's state after `step` steps, all of which depends on `step`. One tensor is big enough for its own write."""
    state = RunState(
        step=step,
        cursor=Cursor(epoch=0, batch=step),
        pending_batches=1,
        epochs_closed=0,
        ema_updates=step,
        ledger=RunState.fresh().ledger,
        loss_means={"box": 1 / (step + 1)},
        seconds=float(step),
    )
    weights = {"weight": torch.full((3, 4), 1.0 + step), "seen": torch.tensor(step)}
    return Snapshot(
        name=checkpoint_name(step=step, tick=step),
        state=state,
        tensors={
            "model": {**weights, "big": torch.full((130, 128), 2.0 + step)},
            "ema": {"weight": weights["weight"].to(torch.bfloat16)},
            "optimizer": {"momentum": weights["weight"] / 2},
            "gradients": {"weight": weights["weight"] * 3},
        },
        made_from={"spec": {"seed": 0}},
        files={"results.csv": f"epoch,box\n1,{step}\n".encode()},
    )


def exported(step: int) -> bytes:
    """What `last.pt` holds after `step` steps."""
    return f"weights of step {step:08d}".encode() * 4


def step_of(name: str) -> int:
    return int(name[5:13])


def is_same(one: Snapshot, other: Snapshot) -> bool:
    """True when both hold the same values, bit for bit."""

    def plain(it: Snapshot) -> object:
        tensors = {
            group: {name: (str(t.dtype), t.tolist()) for name, t in named.items()}
            for group, named in it.tensors.items()
        }
        return it.name, it.state, tensors, it.made_from, it.files

    return plain(one) == plain(other)


# --- the check ---


def flaws(run: Path, acknowledged: Iterable[str]) -> list[str]:
    """All that is wrong with a run's checkpoints when all of `acknowledged` must be there. Empty when all is well."""
    wanted = sorted(acknowledged)
    checkpoints = Checkpoints(run / "checkpoints", writer_id="reader")
    committed = checkpoints.committed()
    found = [f"{name} was acknowledged and is lost" for name in wanted if name not in committed]
    for name in committed:
        try:
            if not is_same(checkpoints.load(name), snapshot(step_of(name))):
                found.append(f"{name} holds something else than was saved")
        except (DataLoss, UserError) as error:
            found.append(f"{name} counts and is not readable: {error.message}")
    newest = checkpoints.newest_verified()
    found += [f"{rejected.name} is rejected: {rejected.why}" for rejected in newest.rejected]
    if wanted and (newest.snapshot is None or newest.snapshot.name < wanted[-1]):
        found.append(f"the newest is {newest.snapshot and newest.snapshot.name}, before {wanted[-1]}")
    last = run / "last.pt"
    if last.exists() and last.read_bytes() not in {exported(step) for step in range(1, 1000)}:
        found.append(f"last.pt holds {last.read_bytes()[:40]!r}")
    return found


# --- one run's saving ---


@dataclass
class Saving:
    """A run that saves into `run` through a background writer, and what was said about it."""

    run: Path
    disk: Disk
    keep_last: int = KEEP_LAST
    acknowledge: Callable[[str], None] = lambda _: None
    acknowledged: list[str] = field(default_factory=list)
    failed: list[tuple[str, Exception]] = field(default_factory=list)
    released: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.checkpoints = Checkpoints(self.run / "checkpoints", disk=self.disk, writer_id="writer")
        self.writer = BackgroundWriter(
            self.checkpoints,
            keep_last=self.keep_last,
            exports=lambda it: replace_file(self.run / "last.pt", exported(it.state.step), disk=self.disk),
            on_committed=lambda committed: self._heard(committed.name),
            on_failed=lambda name, error: self.failed.append((name, error)),
            release=lambda it: self.released.append(it.name),
        )

    def save(self, step: int) -> None:
        """Save and wait until that was tried."""
        self.writer.submit(snapshot(step))
        assert self.writer.drain(30), "the writer hangs"

    def kept(self) -> list[str]:
        """The acknowledged saves that retention must have left."""
        return self.acknowledged[-self.keep_last :]

    def _heard(self, name: str) -> None:
        self.acknowledged.append(name)
        self.acknowledge(name)


# --- children that die ---


def save_three(run: Path, disk: Disk, calls: WatchedCalls, acknowledge: Callable[[str], None]) -> None:
    """Save three times, with `calls` armed for the third, which also deletes the first."""
    saving = Saving(run, disk, acknowledge=acknowledge)
    for step in (1, 2, 3):
        if step == 3:
            calls.arm()
        saving.save(step)
    saving.writer.close()


def crash_points() -> tuple[str, ...]:
    """Every system call of one save, from its first export to the removal of an old one, and the middle of writes."""
    calls = WatchedCalls()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        run.mkdir()
        save_three(run, LocalDisk(calls), calls, lambda _: None)
    return tuple(
        f"{when} {call}"
        for call in calls.calls
        for when in ("before", "midway")
        if when == "before" or call.operation == "write"
    )


def acknowledger(path: Path) -> Callable[[str], None]:
    """Tells the parent of an acknowledged save, in a way that outlives the child."""

    def acknowledge(name: str) -> None:
        with path.open("a") as file:
            file.write(f"{name}\n")

    return acknowledge


def acknowledged_in(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def die_saving(run: Path, point: str, disk_type: Callable[[WatchedCalls], Disk]) -> None:
    """In a child: save three times and die at `point`."""
    calls = KillingCalls(point)
    save_three(run, disk_type(calls), calls, acknowledger(run / "acknowledged"))


def save_forever(run: Path, first_step: int) -> None:
    """In a child: save as fast as the disk allows, until killed."""
    saving = Saving(run, LocalDisk(), acknowledge=acknowledger(run / "acknowledged"))
    saving.checkpoints.sweep()
    for step in count(first_step):
        saving.save(step)


# --- disks without protection, for the controls ---


class InPlaceDisk(LocalDisk):
    """Writes under the final name at once."""

    def write(self, path: Path, chunks: Iterable[memoryview | bytes]) -> None:
        final = self._final(path)
        final.unlink(missing_ok=True)
        super().write(final, chunks)

    def rename(self, src: Path, dst: Path) -> None:
        if self._final(src) == src:
            super().rename(src, dst)

    def make_folder(self, path: Path) -> None:
        super().make_folder(self._final(path))

    def sync_folder(self, path: Path) -> None:
        super().sync_folder(self._final(path))

    def remove(self, path: Path) -> None:
        if self._final(path) == path:
            super().remove(path)

    @staticmethod
    def _final(path: Path) -> Path:
        unstaged = re.sub(r"\.partial-[\w-]+", "", str(path))
        return Path(re.sub(r"/\.([^/]+)\.partial$", r"/\1", unstaged))


class HopefulDisk(LocalDisk):
    """Hears no error and compares no sizes."""

    def write(self, path: Path, chunks: Iterable[memoryview | bytes]) -> None:
        with suppress(OSError):
            fd = self._system.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            for chunk in chunks:
                with suppress(OSError):
                    self._system.write(fd, memoryview(chunk))
            with suppress(OSError):
                self._system.fsync(fd)
            os.close(fd)

    def rename(self, src: Path, dst: Path) -> None:
        with suppress(OSError):
            super().rename(src, dst)

    def sync_folder(self, path: Path) -> None:
        with suppress(OSError):
            super().sync_folder(path)


# --- a disk that is really full; runs in a process of its own, which can mount one ---


def fill_up(run: Path, disk: Disk) -> tuple[Saving, list[str]]:
    """Save until the small file system at `run` refuses, then make room and save once more. Returns flaws, too."""
    ballast = run / "ballast"
    ballast.write_bytes(bytes(200_000))
    saving = Saving(run, disk, keep_last=1000)
    for step in range(1, 100):
        saving.save(step)
        if any("No space left" in str(error) for _, error in saving.failed) or flaws(run, saving.kept()):
            break
    found = flaws(run, saving.kept())
    ballast.unlink()
    saving.save(step + 1)
    saving.writer.close()
    found += flaws(run, saving.kept())
    return saving, found


def main() -> None:
    """Fill the file systems mounted at the two folders named, one with protection and one without."""
    protected, hopeful = Path(sys.argv[1]), Path(sys.argv[2])
    saving, found = fill_up(protected, LocalDisk())
    _, control = fill_up(hopeful, HopefulDisk())
    is_newest_kept = saving.acknowledged[-1] > saving.failed[0][0] if saving.failed else False
    sys.stdout.write(
        repr(
            {
                "num_acknowledged": len(saving.acknowledged),
                "failed": [str(error) for _, error in saving.failed],
                "is_saved_afterwards": is_newest_kept,
                "flaws": found,
                "control": control,
            }
        )
    )


if __name__ == "__main__":
    main()

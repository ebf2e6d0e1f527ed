"""Training runs in processes of their own, what can be done to them, and whether two of them are the same.

A child runs the real command. What a test wants to happen inside it is a `prepare` function, called in the child before
the command begins: picklable, so a module's own function, or a `functools.partial` of one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from steadyolo.events import read_events

CHILDREN = multiprocessing.get_context("forkserver")
LIMIT_S = 150.0  # nothing here takes longer, even where other processes want the cores

Prepare = Callable[[], None]


# --- starting and ending ---


@dataclass(frozen=True)
class Outcome:
    """How a child ended: its exit code (negative for a signal that killed it), what it printed, how long it took."""

    exit_code: int
    output: str
    seconds: float

    def expect(self, exit_code: int) -> Outcome:
        assert self.exit_code == exit_code, (
            f"exit code {self.exit_code}, not {exit_code}; it printed:\n{self.output[-3000:]}"
        )
        return self


class Child:
    """One process that runs `steadyolo WORDS`, or whatever `act` is."""

    def __init__(self, act: Sequence[object] | Prepare, *, log: Path, prepare: Sequence[Prepare] = ()) -> None:
        self._log = log
        self._started_s = time.monotonic()
        command = act if callable(act) else partial(_command, [str(word) for word in act])
        self._process = CHILDREN.Process(target=_main, args=(command, log, tuple(prepare)))
        self._process.start()

    def send(self, number: signal.Signals, *, to_group: bool = False) -> None:
        """Signal the child; with `to_group` the workers too, as a terminal does."""
        assert self._process.pid is not None
        (os.killpg if to_group else os.kill)(self._process.pid, number)

    def wait(self, timeout_s: float = LIMIT_S) -> Outcome:
        self._process.join(timeout_s)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            self._process.join()
            raise AssertionError(f"still running after {timeout_s} s; it printed:\n{_text(self._log)[-3000:]}")
        return Outcome(code, _text(self._log), time.monotonic() - self._started_s)

    def wait_for(self, path: Path, timeout_s: float = LIMIT_S) -> None:
        """Return once `path` exists, while the child is still running."""
        deadline_s = time.monotonic() + timeout_s
        while not path.exists():
            assert self._process.exitcode is None, (
                f"it ended before {path.name}; it printed:\n{_text(self._log)[-3000:]}"
            )
            assert time.monotonic() < deadline_s, (
                f"no {path.name} within {timeout_s} s; it printed:\n{_text(self._log)[-3000:]}"
            )
            time.sleep(0.002)

    @property
    def is_running(self) -> bool:
        return self._process.exitcode is None


def steadyolo(*words: object, log: Path, prepare: Sequence[Prepare] = ()) -> Outcome:
    """Run a command to its end."""
    return Child(words, log=log, prepare=prepare).wait()


def in_child(act: Prepare, *, log: Path, prepare: Sequence[Prepare] = ()) -> Outcome:
    """Call `act` (picklable) in a process of its own, to its end."""
    return Child(act, log=log, prepare=prepare).wait()


def _main(act: Prepare, log: Path, prepare: tuple[Prepare, ...]) -> None:
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.chdir(log.parent)
    os.setsid()
    for change in prepare:
        change()
    act()


def _command(words: list[str]) -> None:
    sys.argv = ["steadyolo", *words]
    from steadyolo.cli.main import run

    run()


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


# --- a small run ---

SMALL: dict[str, object] = {
    "epochs": 3,
    "imgsz": 64,
    "batch": 4,
    "nbs": 8,  # an optimizer step every second batch, so that gradients wait across some saves
    "warmup_epochs": 0.5,
    "close_mosaic": 1,
    "plots": False,
    "optimizer": "AdamW",
    "cpu.threads": 1,
    "save.every": "0.01s",  # after every batch, when the writer is free
    "data.bad_labels": "skip",
}


def words(**given: object) -> list[str]:
    """`key=value` words; `__` in a name stands for a dot."""
    return [f"{name.replace('__', '.')}={value}" for name, value in given.items()]


def small(data: Path, model: Path, run: Path, **changes: object) -> list[str]:
    """The words that train a small run in the folder `run`; None takes an argument out."""
    changed = {name.replace("__", "."): value for name, value in changes.items()}
    given = {**SMALL, **changed, "data": data, "model": model, "project": run.parent, "name": run.name}
    return ["train", *(f"{name}={value}" for name, value in given.items() if value is not None)]


# --- looking at a run ---


def checkpoints(run: Path) -> list[Path]:
    """Committed checkpoints, oldest first."""
    return sorted((run / "steadyolo" / "checkpoints").glob("step-????????.????????"))


def state_of(checkpoint: Path) -> dict[str, Any]:
    return dict(json.loads((checkpoint / "state.json").read_text())["state"])


def happened(run: Path, *kinds: str) -> list[dict[str, Any]]:
    return list(read_events(run / "steadyolo" / "events.jsonl", kinds or None))


def table(run: Path) -> list[dict[str, str]]:
    """`results.csv`, without the column that tells the time."""
    header, *rows = (run / "results.csv").read_text().splitlines()
    names = header.split(",")
    return [{name: value for name, value in zip(names, row.split(","), strict=True) if name != "time"} for row in rows]


def digests(run: Path) -> dict[str, object]:
    """Everything that must be equal in two runs: tensors of the last checkpoint, its state, and the metric columns."""
    last = checkpoints(run)[-1]
    tensors = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(last.glob("*.safetensors"))}
    assert {"model.safetensors", "ema.safetensors", "optimizer.safetensors"} <= set(tensors)
    state = {name: value for name, value in state_of(last).items() if name != "seconds"}
    return {"name": last.name, **tensors, "state": state, "results.csv": table(run)}


def differing(one: Mapping[str, object], other: Mapping[str, object]) -> list[str]:
    """Names of what differs, for a message that can be read."""
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


# --- what can be done to a child ---


def touch_and_wait(flag: Path, pause_s: float) -> None:
    """Say that a phase is reached, and stay in it for a while."""
    if not flag.exists():
        flag.touch()
        deadline_s = time.monotonic() + pause_s
        while time.monotonic() < deadline_s:  # a signal's handler runs in between
            time.sleep(0.01)


def pause_at(event: str, nth: int, flag: Path, pause_s: float) -> None:
    """Stay `pause_s` in the `nth` call (from 1) of an Ultralytics callback."""
    on_event(event, _Nth(nth, lambda _: touch_and_wait(flag, pause_s)))


def pause_in(where: str, nth: int, flag: Path, pause_s: float) -> None:
    """Stay `pause_s` in the `nth` call (from 1) of the method `module:Class.method`, before it does its work."""
    owner, name, method = _method(where)
    counted = _Nth(nth, lambda *_, **__: touch_and_wait(flag, pause_s))

    def paused(*args: Any, **kwargs: Any) -> Any:
        counted(*args, **kwargs)
        return method(*args, **kwargs)

    setattr(owner, name, paused)


def die_at(event: str, nth: int) -> None:
    """SIGKILL in the `nth` call (from 1) of an Ultralytics callback."""
    on_event(event, _Nth(nth, lambda _: os.kill(os.getpid(), signal.SIGKILL)))


def on_event(event: str, hook: Callable[[Any], None]) -> None:
    from ultralytics.utils.callbacks import default_callbacks

    default_callbacks[event].append(hook)


def _method(where: str) -> tuple[Any, str, Any]:
    import importlib

    module, _, path = where.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    return owner, name, getattr(owner, name)


class _Nth:
    """Calls `act` at the `nth` call only, counted from 1."""

    def __init__(self, nth: int, act: Callable[..., object]) -> None:
        self._left, self._act = nth, act

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self._left -= 1
        if self._left == 0:
            self._act(*args, **kwargs)


def without_sample_keys() -> None:
    """Take the keys of all draws away: generators then go on from wherever they are."""
    import steadyolo.adapters.ultralytics.dataset as dataset
    import steadyolo.adapters.ultralytics.run as run

    dataset.seed_generators = run.seed_generators = lambda key, **_: None  # type: ignore[assignment]


class FullWhile:
    """`os`, on a disk that is full for as long as the file `flag` is there. Counts what it refuses in `flag`."""

    def __init__(self, flag: Path) -> None:
        self._flag = flag

    def write(self, fd: int, data: memoryview, /) -> int:
        if self._flag.exists():
            with self._flag.open("a") as file:
                file.write("refused\n")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(fd, data)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def full_disk_while(flag: Path) -> None:
    """Everything that is kept goes to a disk which is full while `flag` is there."""
    from steadyolo.vault.disk import LOCAL_DISK

    LOCAL_DISK._system = FullWhile(flag)


def make_at(event: str, nth: int, path: Path) -> None:
    on_event(event, _Nth(nth, lambda _: path.touch()))


def remove_at(event: str, nth: int, path: Path) -> None:
    on_event(event, _Nth(nth, lambda _: path.rename(path.with_suffix(".was"))))


def poison_images(cursors: Iterable[tuple[int, int]] | None) -> None:
    """Put a NaN into the images of the batches at (epoch, batch); into every one with None."""
    _poison(cursors, lambda batch: batch["img"][0, 0, 0, :1].fill_(float("nan")))


def _poison(cursors: Iterable[tuple[int, int]] | None, spoil: Callable[[Any], object]) -> None:
    from ultralytics.models.yolo.detect import DetectionTrainer

    from steadyolo.adapters.ultralytics.loader import KeyedLoader

    wanted = None if cursors is None else set(cursors)
    read, preprocess = KeyedLoader.batch, DetectionTrainer.preprocess_batch
    at: list[tuple[int, int]] = [(-1, -1)]

    def noting(loader: Any, cursor: Any) -> Any:
        at[0] = (cursor.epoch, cursor.batch)
        return read(loader, cursor)

    def spoiling(trainer: Any, batch: Any) -> Any:
        batch = preprocess(trainer, batch)
        if wanted is None or at[0] in wanted:
            spoil(batch)
        return batch

    KeyedLoader.batch = noting  # type: ignore[method-assign]
    DetectionTrainer.preprocess_batch = spoiling


def poison_gradients(cursors: Iterable[tuple[int, int]]) -> None:
    """Turn a gradient into NaN in the backward pass of the batches at (epoch, batch), whose losses stay finite."""
    from steadyolo.adapters.ultralytics.loader import KeyedLoader

    wanted, read = set(cursors), KeyedLoader.batch
    at: list[tuple[int, int]] = [(-1, -1)]

    def noting(loader: Any, cursor: Any) -> Any:
        at[0] = (cursor.epoch, cursor.batch)
        return read(loader, cursor)

    def hooked(trainer: Any) -> None:
        parameter = next(p for p in trainer.model.parameters() if p.requires_grad)
        parameter.register_hook(lambda gradient: gradient * float("nan") if at[0] in wanted else None)

    KeyedLoader.batch = noting  # type: ignore[method-assign]
    on_event("on_train_start", hooked)


def without_finite_checks() -> None:
    """Take the protection against NaN away: everything looks finite."""
    import torch

    import steadyolo.train.step as step

    class Blind:
        """torch, to which all numbers are finite."""

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        @staticmethod
        def isfinite(value: torch.Tensor) -> torch.Tensor:
            return torch.ones_like(value, dtype=torch.bool)

    step.torch = Blind()  # type: ignore[attr-defined]

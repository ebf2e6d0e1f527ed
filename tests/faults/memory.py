"""Takes a child's memory away, at a chosen operator or for good, and looks at what it learned from.

The failure is the allocator's own: at the chosen moment it is asked for more than there can be.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steadyolo.plan.fit import Fit, FitSchedule
from tests.faults.runs import on_event

Place = tuple[int, int]  # epoch and batch

OPERATORS: dict[str, tuple[str, int]] = {  # an operator's name, and which of its calls in a batch fails
    "forward": ("convolution", 20),
    "backward": ("convolution_backward", 20),
    "clipping": ("_foreach_norm", 2),  # the first one is the finite check of the batch
    "update": ("_fused_adamw_", 2),  # the first group of parameters is updated, the others are not
    "update by SGD": ("_fused_sgd_", 2),
    "update by MuSGD": ("baddbmm", 9),
    "ema": ("_foreach_lerp_", 1),
}


def fail() -> None:
    import torch

    torch.empty(2**60, dtype=torch.uint8)


def failing(operator: str, nth: int) -> Any:
    """A context in which the `nth` call (from 1) of an operator finds no memory."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Failing(TorchDispatchMode):
        left = nth

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.left -= func.overloadpacket.__name__ == operator
            if self.left == 0:
                self.left = -1
                fail()
            return func(*args, **(kwargs or {}))

    return Failing()


def run_short(where: str, at: Place, times: int) -> None:
    """Let an operator of the batch at (epoch, batch) fail, in its first `times` attempts."""
    from steadyolo.adapters.ultralytics.run import UltralyticsRun

    train_batch, left = UltralyticsRun._train_batch, [times]

    def short(run: Any, state: Any) -> Any:
        if (state.cursor.epoch, state.cursor.batch) != at or not left[0]:
            return train_batch(run, state)
        left[0] -= 1
        with failing(*OPERATORS[where]):
            return train_batch(run, state)

    UltralyticsRun._train_batch = short  # type: ignore[method-assign]


def run_short_in_validation(epoch: int, times: int) -> None:
    """Let a convolution of the validation after `epoch` fail, in its first `times` attempts."""
    from ultralytics.engine.trainer import BaseTrainer

    validate, left = BaseTrainer.validate, [times]

    def short(trainer: Any) -> Any:
        if trainer.epoch != epoch or not left[0]:
            return validate(trainer)
        left[0] -= 1
        with failing("conv2d", 40):  # where no gradient is asked for, that is its name
            return validate(trainer)

    BaseTrainer.validate = short


def with_fits(changes: Sequence[tuple[int, int, Fit]]) -> None:
    """Let a run use other fits from the given batches on, without any fault."""
    import steadyolo.adapters.ultralytics.planning as planning

    schedule_of = planning.schedule_of

    def planned(name: str, fit: Fit, **given: Any) -> FitSchedule:
        made = schedule_of(name, fit, **given)
        for change in changes if name == "fits" else ():
            made = made.changed(*change)
        return made

    planning.schedule_of = planned


def note_samples(path: Path) -> None:
    """Write down which pictures each batch had that was consumed, and the step that the run was at before and after."""
    from steadyolo.adapters.ultralytics.loader import KeyedLoader
    from steadyolo.adapters.ultralytics.run import UltralyticsRun

    train_batch, read = UltralyticsRun._train_batch, KeyedLoader.batch
    files: list[str] = []

    def noting(loader: Any, cursor: Any) -> Any:
        batch = read(loader, cursor)
        files[:] = [Path(file).name for file in batch["im_file"]]
        return batch

    def noted(run: Any, state: Any) -> Any:
        after = train_batch(run, state)
        place = [state.cursor.epoch, state.cursor.batch]
        with path.open("a") as file:
            file.write(json.dumps({"place": place, "files": files, "steps": [state.step, after.step]}) + "\n")
        return after

    KeyedLoader.batch = noting  # type: ignore[method-assign]
    UltralyticsRun._train_batch = noted  # type: ignore[method-assign]


def samples(path: Path) -> dict[Place, tuple[list[str], list[int]]]:
    """What `note_samples` wrote, as it was when each batch was consumed last."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {tuple(line["place"]): (line["files"], line["steps"]) for line in lines}


def without_restore() -> None:
    """Do a batch again without putting statistics and gradients back."""
    from steadyolo.train.step import Stepper

    Stepper.roll_back = Stepper.settle  # type: ignore[method-assign]


def without_going_back() -> None:
    """Take a step that the optimizer has begun for one that it has not."""
    from steadyolo.train.step import Stepper

    Stepper.is_applied = property(lambda _: False, lambda *_: None)  # type: ignore[assignment,method-assign]


# --- a real limit ---


def data_bytes() -> int:
    """Memory of this process that counts against RLIMIT_DATA."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))


def note_growth(path: Path) -> None:
    """Write down how many bytes the process has when training starts, and at most in its first batch."""
    is_over = threading.Event()

    def watch(start: int) -> None:
        most = start
        while not is_over.wait(0.001):
            most = max(most, data_bytes())
            path.write_text(f"{start} {most}")

    def begin(_: Any) -> None:
        threading.Thread(target=watch, args=(data_bytes(),), daemon=True).start()

    on_event("on_train_start", begin)
    on_event("on_train_batch_end", lambda _: is_over.set())


def limit_to(num_bytes: int) -> None:
    """As `ulimit -d` does, from when training starts: no allocation succeeds that would make the process larger.

    From the beginning there is a limit, too large to be met, so that what is planned is planned for more.
    """
    import resource

    def limit(_: Any) -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, resource.RLIM_INFINITY))

    resource.setrlimit(resource.RLIMIT_DATA, (2**40, resource.RLIM_INFINITY))
    on_event("on_train_start", limit)

"""The stream of samples is a function of the seed: not of workers, of where it starts, or of what is cached."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steadyolo.state.run_state import Cursor
from tests.conftest import TASKS
from tests.unit.adapters.ultralytics.set_up import trainer_for

pytestmark = pytest.mark.slow

NUM_EPOCHS = 3
EVERYTHING = {  # every draw that Ultralytics knows
    "mosaic": 0.8,
    "mixup": 0.5,
    "cutmix": 0.5,
    "copy_paste": 0.5,
    "degrees": 10.0,
    "translate": 0.2,
    "scale": 0.6,
    "shear": 5.0,
    "perspective": 0.0005,
    "flipud": 0.5,
    "fliplr": 0.5,
    "bgr": 0.3,
    "hsv_h": 0.1,
    "hsv_s": 0.7,
    "hsv_v": 0.4,
    "close_mosaic": 1,
    "epochs": NUM_EPOCHS,
}
CLASSIFY = {
    "epochs": NUM_EPOCHS,
    "auto_augment": "randaugment",
    "erasing": 0.4,
    "hsv_h": 0.1,
    "flipud": 0.5,
    "scale": 0.5,
}

Maker = Callable[..., Any]


@pytest.fixture
def loader(tmp_path: Path, boards: Callable[[str], Path], models: Callable[..., Path]) -> Callable[..., Any]:
    """Makes a training loader as a run has it."""

    @contextmanager
    def made(task: str, **changes: object) -> Iterator[Any]:
        folder = tmp_path / f"set-up-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        given = {**(CLASSIFY if task == "classify" else EVERYTHING), **changes}
        with trainer_for(task, folder, boards, models, **given) as trainer:
            yield trainer.train_loader

    return made


def digest(batch: dict[str, Any]) -> str:
    """SHA-256 over everything in a batch that a step or a plot could use."""
    total = hashlib.sha256()
    for name in sorted(batch):
        value = batch[name]
        total.update(name.encode())
        if isinstance(value, torch.Tensor):
            total.update(f"{value.dtype}{tuple(value.shape)}".encode())
            total.update(value.contiguous().numpy().tobytes())
        else:
            total.update(repr(value).encode())
    return total.hexdigest()


def stream(loader: Any, start: Cursor = Cursor(epoch=0, batch=0)) -> dict[tuple[int, int], str]:  # noqa: B008
    """Digests of all batches from a cursor to the end, by (epoch, batch)."""
    found = {}
    for epoch in range(start.epoch, NUM_EPOCHS):
        for batch in range(start.batch if epoch == start.epoch else 0, len(loader)):
            found[epoch, batch] = digest(loader.batch(Cursor(epoch=epoch, batch=batch)))
    return found


def differing(one: dict[tuple[int, int], str], other: dict[tuple[int, int], str]) -> list[tuple[int, int]]:
    return sorted(at for at in one.keys() & other.keys() if one[at] != other[at])


@pytest.mark.parametrize("task", TASKS)
def test_a_stream_is_the_same_for_any_number_of_workers(task: str, loader: Maker) -> None:
    with loader(task) as one:
        alone = stream(one)
    assert len(set(alone.values())) == len(alone) == NUM_EPOCHS * 4, "epochs or batches repeat themselves"
    for workers in (1, 2, 5):
        with loader(task, workers=workers) as several:
            assert several.num_workers == workers
            assert differing(stream(several), alone) == []


@pytest.mark.parametrize("task", TASKS)
def test_a_stream_is_the_same_from_any_cursor_on(task: str, loader: Maker) -> None:
    with loader(task) as one:
        whole = stream(one)
    for epoch, batch in [(0, 1), (1, 0), (1, 2), (NUM_EPOCHS - 1, 0), (NUM_EPOCHS - 1, 3)]:
        with loader(task) as fresh:  # a new process's: nothing is decoded, nothing was drawn
            torch.manual_seed(epoch)
            np.random.seed(batch)
            later = stream(fresh, Cursor(epoch=epoch, batch=batch))
            assert later
            assert differing(later, whole) == []
    with loader(task, workers=2) as fresh:
        assert differing(stream(fresh, Cursor(epoch=1, batch=3)), whole) == []


def test_a_loader_may_jump_to_and_fro(loader: Maker) -> None:
    with loader("detect") as one, loader("detect") as other:
        whole = stream(one)
        for epoch, batch in [(2, 3), (0, 0), (1, 1), (1, 2), (0, 3), (1, 0), (0, 0)]:
            assert digest(other.batch(Cursor(epoch=epoch, batch=batch))) == whole[epoch, batch]


@pytest.mark.parametrize("cache", ["ram", "disk"])
@pytest.mark.parametrize("task", ["detect", "segment"])
def test_a_cache_changes_nothing(task: str, cache: str, loader: Maker) -> None:
    with loader(task) as one:
        plain = stream(one)
    for workers in (0, 2):
        with loader(task, cache=cache, workers=workers) as cached:
            assert differing(stream(cached), plain) == []


@pytest.mark.parametrize(
    "changes", [{"rect": True}, {"fraction": 0.6}, {"single_cls": True}, {"batch": 5, "seed": 3}], ids=str
)
def test_other_settings_keep_their_stream_too(changes: dict[str, object], loader: Maker) -> None:
    with loader("detect", **changes) as one:
        alone = stream(one)
        num_batches = len(one)
    assert len(set(alone.values())) == NUM_EPOCHS * num_batches
    with loader("detect", workers=2, **changes) as several:
        assert differing(stream(several), alone) == []
    with loader("detect", workers=2, **changes) as fresh:
        assert differing(stream(fresh, Cursor(epoch=1, batch=1)), alone) == []


def test_another_seed_is_another_stream(loader: Maker) -> None:
    with loader("detect") as one, loader("detect", seed=1) as other:
        assert len(differing(stream(one), stream(other))) == NUM_EPOCHS * 4


def test_mosaic_is_closed_when_its_epoch_comes(loader: Maker) -> None:
    """The last epoch is what it would be in a run that never had mosaics."""
    plain = {"mosaic": 0.0, "mixup": 0.0, "cutmix": 0.0, "copy_paste": 0.0}
    with loader("detect") as one, loader("detect", **plain) as other:
        ours, without = stream(one), stream(other)
    different = {epoch for epoch, _ in differing(ours, without)}
    assert different == {0, 1}


def test_only_draws_use_the_keys(loader: Maker) -> None:
    """Without augmentation each image is the same in every epoch; only its place changes."""
    still = dict.fromkeys(EVERYTHING, 0.0) | {"close_mosaic": 0, "epochs": NUM_EPOCHS, "batch": 1}
    with loader("detect", **still) as one:
        seen = [one.batch(Cursor(epoch=e, batch=b)) for e in (0, 1) for b in range(len(one))]
    images = {(batch["im_file"][0], hashlib.sha256(batch["img"].numpy().tobytes()).hexdigest()) for batch in seen}
    assert len(images) == 14
    assert [batch["im_file"] for batch in seen[:14]] != [batch["im_file"] for batch in seen[14:]]


def test_workers_are_forked_whatever_the_default_is(loader: Maker) -> None:
    """The data set holds locks and shared memory that only a forked process inherits; Python 3.14 forks no more."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    try:
        with loader("detect", workers=1) as one:
            one.batch(Cursor(epoch=0, batch=0))
    finally:
        multiprocessing.set_start_method(before, force=True)


def test_keys_are_needed(loader: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them the stream depends on the number of workers and on where it starts."""
    import steadyolo.adapters.ultralytics.dataset as dataset

    monkeypatch.setattr(dataset, "seed_generators", lambda key, **_: None)
    with loader("detect") as one:
        alone = stream(one)
    with loader("detect", workers=2) as several:
        assert differing(stream(several), alone)
    with loader("detect") as fresh:
        assert differing(stream(fresh, Cursor(epoch=1, batch=1)), alone)


def test_the_window_of_partners_is_needed(loader: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Ultralytics' buffer, a mosaic's partners depend on what its process has loaded before."""
    import steadyolo.adapters.ultralytics.dataset as dataset

    class Remembering(list[int]):
        known: list[int] = []  # noqa: RUF012

        def __init__(self, indices: list[int]) -> None:
            super().__init__(self.known or indices)

        def append(self, index: int) -> None:
            self.known.append(index)

    monkeypatch.setattr(dataset, "_Partners", Remembering)
    with loader("detect") as one:
        alone = stream(one)
    Remembering.known.clear()
    with loader("detect") as fresh:
        assert differing(stream(fresh, Cursor(epoch=1, batch=1)), alone)

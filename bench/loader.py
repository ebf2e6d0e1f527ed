"""What a training sample costs the loader: steadyolo against Ultralytics, mosaic on, nothing cached.

Processor seconds per image and core: one process, no workers, one thread, `time.process_time` around whole batches
(decoding, mosaic, the rest of the augmentation, collation), so that other work on the machine counts little and
waiting for a disk not at all. Each side's loader is the one that its own trainer sets up for training; it is taken
from there and read without training. The first window of samples (what mosaics choose partners from: 8 batches) is
warm-up on both sides.

Three cases: bccd at 320 and at 640, and 5,000 synthetic boards of 1280x960 at 640, far more than any window holds.
`--workers 2` measures wall-clock time per image with two worker processes instead, for information: on a CPU
Ultralytics loads in the training process whatever is asked, and is told otherwise here.

One process for each figure, alternating order. The last line is JSON: its `ours`, `theirs` (milliseconds an image)
and `ratio` (ours / theirs, lower is better) are those of the worst case, `cases` has all of them.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import side_by_side as bench

SIDES = ("ours", "theirs")
BATCH = 16
WINDOW_BATCHES = 8


@dataclass(frozen=True, slots=True)
class Case:
    """A data set and the size that its images are trained at."""

    name: str
    data: Path
    size_px: int


def measure(request: bench.Json) -> bench.Json:
    """Child: seconds per image of one side."""
    num_workers, num_images = request["workers"], request["images"]
    answer: bench.Json = {}

    def set_up(trainer: Any) -> None:
        import torch

        torch.set_num_threads(1)
        batches = _batches(trainer.train_loader, ours=request["side"] == "ours")
        _consume(batches, WINDOW_BATCHES * BATCH)
        clock = time.perf_counter if num_workers else time.process_time
        began_s = clock()
        taken = _consume(batches, num_images)
        answer.update(seconds_per_image=(clock() - began_s) / taken, num_images=taken)
        trainer.train_loader.close()
        raise bench.Measured

    def before_set_up(trainer: Any) -> None:
        trainer.args.workers = num_workers

    ours = {"data.bad_labels": "skip"}
    callbacks = {"on_pretrain_routine_start": before_set_up, "on_pretrain_routine_end": set_up}
    bench.train(request["side"], request["arguments"], ours=ours, callbacks=callbacks)
    return answer


def _batches(loader: Any, *, ours: bool) -> Iterator[Any]:
    """Batches as the training loop takes them, epoch after epoch."""
    if not ours:
        while True:
            yield from loader
    from steadyolo.state.run_state import Cursor

    for epoch in itertools.count():
        for batch in range(len(loader)):
            yield loader.batch(Cursor(epoch=epoch, batch=batch))


def _consume(batches: Iterator[Any], num_images: int) -> int:
    """Take batches until at least `num_images` have been seen; returns how many it were."""
    taken = 0
    while taken < num_images:
        taken += next(batches)["img"].shape[0]
    return taken


def main() -> None:
    parser = bench.arguments(__doc__, repeats=5)
    parser.add_argument("--images", type=int, default=1200, help="images measured in each process")
    parser.add_argument("--boards", type=int, default=5000, help="synthetic boards in the large set")
    parser.add_argument("--workers", type=int, default=0, help="worker processes; wall-clock time where there are any")
    args = parser.parse_args()
    if args.quick:
        args.repeats, args.images, args.boards = 2, 150, 300
    out = args.out / "loader"
    data = bench.data_set(args.data, args.out)
    large = bench.boards(args.out, num_train=args.boards, num_val=16, size_px=(1280, 960))
    cases = [
        Case(f"{data.parent.name} at 320", data, 320),
        Case(f"{data.parent.name} at 640", data, 640),
        Case(f"{args.boards} boards of 1280x960 at 640", bench.without_caches(large), 640),
    ]
    results = [_compare(case, args, out) for case in cases]
    worst = max(results, key=lambda result: float(result["ratio"]))
    bench.finish(
        "loader",
        ours=worst["ours"],
        theirs=worst["theirs"],
        ratio=worst["ratio"],
        repeats=args.repeats,
        args=args,
        unit="ms of wall clock an image" if args.workers else "ms of one core an image",
        case=worst["case"],
        workers=args.workers,
        images_per_repeat=args.images,
        cases=results,
    )


def _compare(case: Case, args: Any, out: Path) -> bench.Json:
    costs_ms: dict[str, list[float]] = {side: [] for side in SIDES}
    for repeat, side in bench.alternating(args.repeats, SIDES):
        name = f"{case.name.replace(' ', '-')}-{side}-{repeat}"
        request = {
            "side": side,
            "workers": args.workers,
            "images": args.images,
            "arguments": _arguments(case, args, out, name),
        }
        answer = bench.in_child(request, out=out, name=name)
        costs_ms[side].append(1e3 * answer["seconds_per_image"])
        bench.say(f"{name}: {costs_ms[side][-1]:.2f} ms an image")
    spreads = {side: bench.spread(values) for side, values in costs_ms.items()}
    ratio = bench.round_off(spreads["ours"]["median"] / spreads["theirs"]["median"])
    bench.say(f"{case.name}: ours costs {ratio:.2f} of Ultralytics'")
    return {"case": case.name, "imgsz": case.size_px, **spreads, "ratio": ratio}


def _arguments(case: Case, args: Any, out: Path, name: str) -> bench.Json:
    return {
        "model": "yolov8n.yaml",
        "data": str(case.data),
        "epochs": 100,  # far from the last ones, in which mosaic is closed
        "imgsz": case.size_px,
        "batch": BATCH,
        "device": args.device,
        "workers": args.workers,
        "seed": 0,
        "cache": False,
        "pretrained": False,
        "plots": False,
        "project": str(out / "runs"),
        "name": name,
    }


if __name__ == "__main__":
    bench.start(main, measure)

"""Training throughput over whole epochs, without validation: steadyolo against Ultralytics.

Images a second from the start of an epoch to its end (the callbacks `on_train_epoch_start` and `on_train_epoch_end`,
which both sides fire at the same places), so reading data, the step and the EMA count; the first epoch is warm-up on
both sides and left out. Same model from scratch, data, batch, size, augmentation (mosaic on) and seed; neither is
asked to save in between (ours still saves at each epoch's end, and writes that in the background of the next one).
Everything else is each side's default, so ours chooses its precision.

On a CPU Ultralytics computes on all cores but one. It is therefore measured twice: as shipped (`theirs_default`) and
with the cores given back to it (`theirs_all_cores`). `theirs` is the better of the two medians, and `ratio` = ours /
theirs. One process for each figure, alternating order. The last line is JSON: its `ours`, `theirs` and `ratio` are
those of the first case, `cases` has all of them, and `lowest_ratio` is the smallest of their ratios. `with_gaps` is
the speed with what happens between two epochs counted too.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import side_by_side as bench

SIDES = ("ours", "theirs_default", "theirs_all_cores")
ALSO = ("ours_fp32",)  # measured on request, to see what the precision contributes
NOMINAL_EPOCHS = 100  # the plan that both sides train by; they are stopped as soon as enough has been measured


def measure(request: bench.Json) -> bench.Json:
    """Child: seconds of each timed epoch of one side."""
    started: list[float] = []
    ended: list[float] = []
    facts: bench.Json = {"precision": "fp32"}

    def on_epoch_end(trainer: Any) -> None:
        ended.append(time.perf_counter())
        if len(ended) <= request["epochs"]:
            return
        import torch

        facts.update(num_images=len(trainer.train_loader.dataset), threads=torch.get_num_threads())
        if ours := getattr(trainer, "precision", None):
            facts["precision"] = ours.compute + (" channels_last" if ours.channels_last else "")
        raise bench.Measured

    callbacks: dict[str, Any] = {
        "on_train_epoch_start": lambda _: started.append(time.perf_counter()),
        "on_train_epoch_end": on_epoch_end,
    }
    if request["side"] == "theirs_all_cores":
        callbacks["on_pretrain_routine_end"] = bench.use_all_cores
    ours = {"save.every": "1h"}
    if request["side"] == "ours_fp32":
        ours["precision.compute"] = "fp32"
    save = {"save": False} if request["side"].startswith("theirs") else {}
    bench.train(request["side"], {**request["arguments"], **save}, ours=ours, callbacks=callbacks)
    epochs_s = [end - begin for begin, end in zip(started, ended, strict=True)]
    return {**facts, "warm_up_s": epochs_s[0], "epochs_s": epochs_s[1:], "whole_s": ended[-1] - started[1]}


def main() -> None:
    parser = bench.arguments(__doc__, repeats=3)
    parser.add_argument("--models", nargs="+", default=["yolov8n.yaml", "yolo11n.yaml"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[320, 640], help="imgsz, in pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2, help="timed epochs in each process, after one of warm-up")
    parser.add_argument("--fraction", type=float, default=1.0, help="share of the training images that makes an epoch")
    parser.add_argument("--also", nargs="*", default=[], choices=ALSO, help="further sides, for information")
    args = parser.parse_args()
    if args.quick:
        args.models, args.sizes, args.epochs, args.repeats, args.fraction = args.models[:1], [64], 1, 1, 0.11
    out = args.out / "train_throughput"
    data = bench.data_set(args.data, args.out)
    sides = (*SIDES, *args.also)
    cases = []
    for model, size_px in itertools.product(args.models, args.sizes):
        speeds: dict[str, list[float]] = {side: [] for side in sides}
        whole: dict[str, list[float]] = {side: [] for side in sides}
        facts: dict[str, bench.Json] = {}
        for repeat, side in bench.alternating(args.repeats, sides):
            name = f"{Path(model).stem}-{size_px}-{side}-{repeat}"
            answer = bench.in_child(
                {"side": side, "epochs": args.epochs, "arguments": _arguments(args, model, size_px, data, out, name)},
                out=out,
                name=name,
            )
            speed = answer["num_images"] * len(answer["epochs_s"]) / sum(answer["epochs_s"])
            speeds[side].append(speed)
            whole[side].append(speed * sum(answer["epochs_s"]) / answer["whole_s"])
            facts[side] = {key: answer[key] for key in ("threads", "precision", "num_images")}
            bench.say(f"{name}: {speed:.2f} images/s")
        cases.append(_case(model, size_px, speeds, whole, facts))
        bench.say(f"{model} at {size_px}: {cases[-1]['ratio']:.2f} times Ultralytics ({cases[-1]['theirs_side']})")
    bench.finish(
        "train_throughput",
        ours=cases[0]["ours"],
        theirs=cases[0]["theirs"],
        ratio=cases[0]["ratio"],
        repeats=args.repeats,
        args=args,
        unit="images/s",
        lowest_ratio=min(case["ratio"] for case in cases),
        batch=args.batch,
        epochs_per_repeat=args.epochs,
        cases=cases,
    )


def _arguments(args: Any, model: str, size_px: int, data: Path, out: Path, name: str) -> bench.Json:
    return {
        "model": model,
        "data": str(data),
        "epochs": NOMINAL_EPOCHS,
        "imgsz": size_px,
        "batch": args.batch,
        "fraction": args.fraction,
        "device": args.device,
        "seed": 0,
        "pretrained": False,
        "val": False,
        "plots": False,
        "project": str(out / "runs"),
        "name": name,
    }


def _case(
    model: str,
    size_px: int,
    speeds: dict[str, list[float]],
    whole: dict[str, list[float]],
    facts: dict[str, bench.Json],
) -> bench.Json:
    spreads = {side: bench.spread(values) for side, values in speeds.items()}
    best = max(("theirs_default", "theirs_all_cores"), key=lambda side: spreads[side]["median"])
    return {
        "model": model,
        "imgsz": size_px,
        "ours": spreads["ours"],
        "theirs": spreads[best],
        "theirs_side": best,
        "ratio": bench.round_off(spreads["ours"]["median"] / spreads[best]["median"]),
        "sides": {
            side: {**spreads[side], "with_gaps": bench.spread(whole[side])["median"], **facts[side]} for side in spreads
        },
    }


if __name__ == "__main__":
    bench.start(main, measure)

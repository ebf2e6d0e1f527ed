"""What saving costs training: steadyolo against Ultralytics.

Part a, the time that the loop stands still for a save. Ours: the time in `run.save`, and what the next update waits
for the copying to end, during real training that saves as often as the writer keeps up (`save.every=1steps`), saves
at epoch ends included.
Ultralytics: the time of `save_model`, which it calls after each epoch, called repeatedly on the same trained model
with the same optimizer (writing `last.pt` only; `best.pt`, which it sometimes writes too, is left out in its favour).
Images are tiny, which changes nothing in what is saved. `ratio` = ours p99 / theirs median, the worst case's.

Part b, throughput of training that saves every 30 s against training that does not save. Blocks of 30 s alternate
within one process (not saving, saving, saving, not saving, ...: four make one comparison, in which a steady drift
cancels), the order turned round from process to process. The data set is bccd listed many times, so that no epoch
ends, and saves, in between. `lost_share` is the mean over comparisons of the throughput lost, with its 95 % interval:
half its width is what can be told apart. `lost_share_by_batches` is a finer estimate: how much longer than usual the
batches in the 3 s after a save took together, divided by the interval; it would miss a cost that comes later.
`--part` chooses a or b; b takes `--minutes` in each of `--repeats` processes.

The last line is JSON: `ours` (p50, p99, max), `theirs` and `ratio` are those of part a's worst case, `stalls` has all
of them, `throughput` has part b.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import side_by_side as bench

SIDES = ("ours", "theirs")
SAVE_EVERY_S = 30.0
NEVER_S = 1e9
AFTER_SAVE_S = 3.0  # within which a save's work behind the loop is over


def measure(request: bench.Json) -> bench.Json:
    """Child: stalls of one side, or the blocks of part b."""
    if request["part"] == "b":
        return _throughput(request)
    return _ours_stalls(request) if request["side"] == "ours" else _theirs_stalls(request)


# -- part a: how long the loop stands still ------------------------------------------------------------------------


def _ours_stalls(request: bench.Json) -> bench.Json:
    from steadyolo.adapters.ultralytics.run import UltralyticsRun
    from steadyolo.train.host_copy import HostCopies

    stalls_s: list[float] = []
    save, wait = UltralyticsRun.save, HostCopies.wait

    def timed_save(run: Any, state: Any, **how: Any) -> None:
        began_s = time.perf_counter()
        save(run, state, **how)
        if state.cursor.epoch or state.cursor.batch:  # the first save of all is made before training begins
            stalls_s.append(time.perf_counter() - began_s)

    def timed_wait(copies: Any) -> float:
        waited_s = wait(copies)
        if stalls_s:
            stalls_s[-1] += waited_s  # the next update's, for what this save copies beside the loop
        return waited_s

    def enough(_: Any) -> None:
        if len(stalls_s) >= request["saves"]:
            raise bench.Measured

    with patch.object(UltralyticsRun, "save", timed_save), patch.object(HostCopies, "wait", timed_wait):
        bench.train(
            "ours", request["arguments"], ours={"save.every": "1steps"}, callbacks={"on_train_batch_end": enough}
        )
    return {"stalls_s": stalls_s}


def _theirs_stalls(request: bench.Json) -> bench.Json:
    stalls_s: list[float] = []

    def on_model_save(trainer: Any) -> None:
        trainer.best_fitness = math.inf  # so that only last.pt is written
        for _ in range(request["saves"]):
            began_s = time.perf_counter()
            trainer.save_model()
            stalls_s.append(time.perf_counter() - began_s)
        raise bench.Measured

    callbacks: bench.Callbacks = {"on_pretrain_routine_end": bench.use_all_cores, "on_model_save": on_model_save}
    bench.train("theirs", request["arguments"], callbacks=callbacks)
    return {"stalls_s": stalls_s}


def _stalls(args: Any, data: Path, out: Path) -> list[bench.Json]:
    cases = []
    for model, optimizer in itertools.product(args.models, args.optimizers):
        stalls_s: dict[str, list[float]] = {side: [] for side in SIDES}
        for repeat, side in bench.alternating(args.repeats, SIDES):
            name = f"{Path(model).stem}-{optimizer}-{side}-{repeat}"
            request = {
                "part": "a",
                "side": side,
                "saves": args.saves if side == "ours" else args.theirs_saves,
                "arguments": {
                    **_arguments(args, model, data, out, name),
                    "imgsz": 64,
                    "batch": 8,
                    "nbs": 8,
                    "optimizer": optimizer,
                    "fraction": 0.25 if side == "ours" else 0.1,
                },
            }
            answer = bench.in_child(request, out=out, name=name)
            stalls_s[side] += answer["stalls_s"]
            median_ms = 1e3 * statistics.median(stalls_s[side])
            bench.say(f"{name}: {median_ms:.1f} ms in the middle, {1e3 * max(stalls_s[side]):.1f} ms at most")
        ours, theirs = _tail(stalls_s["ours"]), _tail(stalls_s["theirs"])
        ratio = bench.round_off(ours["p99_ms"] / theirs["p50_ms"])
        cases.append({"model": model, "optimizer": optimizer, "ours": ours, "theirs": theirs, "ratio": ratio})
        bench.say(f"{model} with {optimizer}: ours p99 is {ratio:.3f} of Ultralytics' median")
    return cases


def _tail(values_s: list[float]) -> bench.Json:
    return {
        "saves": len(values_s),
        "p50_ms": bench.round_off(1e3 * statistics.median(values_s)),
        "p99_ms": bench.round_off(1e3 * bench.percentile(values_s, 0.99)),
        "max_ms": bench.round_off(1e3 * max(values_s)),
    }


# -- part b: throughput with and without saves ---------------------------------------------------------------------


def _throughput(request: bench.Json) -> bench.Json:
    """When each batch ended, at which of them a block began and whether that one saves, and when the loop saved."""
    from steadyolo.adapters.ultralytics.run import UltralyticsRun
    from steadyolo.spec.cadence import EverySeconds

    ends_s: list[float] = []
    blocks: list[tuple[int, bool]] = []  # the first is warm-up
    saves_s: list[float] = []
    plan = request["blocks"]
    save = UltralyticsRun.save

    def noted(run: Any, state: Any, **how: Any) -> None:
        saves_s.append(time.perf_counter())
        save(run, state, **how)

    def after_batch(trainer: Any) -> None:
        ends_s.append(time.perf_counter())
        if blocks and ends_s[-1] - ends_s[blocks[-1][0]] < request["block_s"]:
            return
        if len(blocks) > len(plan):
            raise bench.Measured
        saving = bool(blocks) and plan[len(blocks) - 1]
        blocks.append((len(ends_s) - 1, saving))
        trainer.spec = replace(trainer.spec, save_every=EverySeconds(request["save_every_s"] if saving else NEVER_S))

    with patch.object(UltralyticsRun, "save", noted):
        bench.train(
            "ours", request["arguments"], ours={"save.every": "1h"}, callbacks={"on_train_batch_end": after_batch}
        )
    return {"ends_s": ends_s, "blocks": blocks, "saves_s": saves_s}


def _compare_throughput(args: Any, data: Path, out: Path) -> bench.Json:
    speeds: dict[bool, list[float]] = {True: [], False: []}
    lost: list[float] = []
    lost_by_batches: list[float] = []
    num_fours = max(round(args.minutes * 60 / (4 * args.block_s)), 1)
    for repeat in range(args.repeats):
        first = bool(repeat % 2)
        name = f"blocks-{repeat}"
        request = {
            "part": "b",
            "block_s": args.block_s,
            "save_every_s": args.block_s,
            "blocks": [first, not first, not first, first] * num_fours,
            "arguments": {
                **_arguments(args, args.models[0], data, out, name),
                "imgsz": args.imgsz,
                "batch": args.batch,
            },
        }
        answer = bench.in_child(request, out=out, name=name)
        blocks = _speeds(answer, args.batch)
        for four in (blocks[i : i + 4] for i in range(0, len(blocks), 4)):
            by = {saving: [speed for saves, speed in four if saves is saving] for saving in (True, False)}
            lost.append(1 - statistics.fmean(by[True]) / statistics.fmean(by[False]))
            for saving, values in by.items():
                speeds[saving] += values
        lost_by_batches += _lost_after_saves(answer, args.block_s)
        bench.say(f"{name}: {bench.interval(lost)['mean']:+.2%} of throughput lost so far")
    return {
        "model": args.models[0],
        "imgsz": args.imgsz,
        "batch": args.batch,
        "save_every_s": args.block_s,
        "saving_images_per_s": bench.spread(speeds[True]),
        "not_saving_images_per_s": bench.spread(speeds[False]),
        "ratio": bench.round_off(1 - statistics.fmean(lost)),
        "lost_share": bench.interval(lost),
        "lost_share_by_batches": bench.interval(lost_by_batches),
    }


def _speeds(answer: bench.Json, batch: int) -> list[tuple[bool, float]]:
    """Whether each block saves, and its images a second; without the warm-up."""
    ends_s, blocks = answer["ends_s"], answer["blocks"]
    lasts = [first for first, _ in blocks[1:]] + [len(ends_s) - 1]
    return [
        (bool(saving), batch * (last - first) / (ends_s[last] - ends_s[first]))
        for (first, saving), last in zip(blocks, lasts, strict=True)
    ][1:]


def _lost_after_saves(answer: bench.Json, interval_s: float) -> list[float]:
    """For each save in a saving block: the time that the batches after it took too long, as a share of the interval."""
    ends_s = answer["ends_s"]
    batches = [(end, end - begin) for begin, end in itertools.pairwise(ends_s)]
    begins_s = ends_s[answer["blocks"][1][0]]
    saves_s = [at for at in answer["saves_s"] if at >= begins_s]
    quiet = [took for end, took in batches if not any(at < end <= at + AFTER_SAVE_S for at in saves_s)]
    usual_s = statistics.fmean(quiet)
    return [
        sum(took - usual_s for end, took in batches if at < end <= at + AFTER_SAVE_S) / interval_s for at in saves_s
    ]


# -- both ----------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = bench.arguments(__doc__, repeats=2)
    parser.add_argument("--part", choices=("a", "b", "both"), default="both")
    parser.add_argument("--models", nargs="+", default=["yolov8n.yaml", "yolov8s.yaml"], help="part b takes the first")
    parser.add_argument("--optimizers", nargs="+", default=["SGD", "AdamW"])
    parser.add_argument("--saves", type=int, default=120, help="our saves in each process of part a")
    parser.add_argument("--theirs-saves", type=int, default=30, help="calls of save_model in each process of part a")
    parser.add_argument("--minutes", type=float, default=20.0, help="length of each process of part b")
    parser.add_argument("--block-s", type=float, default=30.0, help="block and save interval of part b")
    parser.add_argument("--imgsz", type=int, default=320, help="of part b")
    parser.add_argument("--batch", type=int, default=16, help="of part b")
    args = parser.parse_args()
    if args.quick:
        args.models, args.optimizers, args.saves, args.theirs_saves = args.models[:1], args.optimizers[1:], 12, 5
        args.minutes, args.block_s, args.imgsz, args.batch, args.repeats = 0.3, 4.0, 64, 4, 1
    out = args.out / "checkpoint_stall"
    data = bench.data_set(args.data, args.out)
    stalls = _stalls(args, data, out) if args.part != "b" else []
    throughput: bench.Json = {}
    if args.part != "a":
        fastest = 30 * bench.num_cores() if args.device == "cpu" else 3000  # images a second, surely
        many = bench.listed_often(data, out / "listed-often", int(fastest * 60 * (args.minutes + 2)))
        throughput = _compare_throughput(args, many, out)
    worst: bench.Json = max(stalls, key=lambda case: float(case["ratio"]), default={})
    bench.finish(
        "checkpoint_stall",
        ours=worst.get("ours"),
        theirs=worst.get("theirs"),
        ratio=worst.get("ratio"),
        repeats=args.repeats,
        args=args,
        unit="ms that the loop stands still for a save",
        stalls=stalls,
        throughput=throughput,
    )


def _arguments(args: Any, model: str, data: Path, out: Path, name: str) -> bench.Json:
    return {
        "model": model,
        "data": str(data),
        "epochs": 1000,  # ended as soon as enough has been measured
        "patience": 0,
        "device": args.device,
        "seed": 0,
        "val": False,
        "pretrained": False,
        "plots": False,
        "project": str(out / "runs"),
        "name": name,
    }


if __name__ == "__main__":
    bench.start(main, measure)

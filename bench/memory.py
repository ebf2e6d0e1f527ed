"""Peak resident memory of a training process: steadyolo against Ultralytics, the same configuration in fp32.

A whole small run on each side in a process of its own: training on part of bccd (mosaic on), scoring after each
epoch, saves (ours also in mid-epoch), final scoring; then the process's own high-water mark (`VmHWM`) is read. Both
compute with `amp=False` on the same number of threads: Ultralytics is given the core back that it leaves idle. Memory
that loader workers would take is not measured: there are none. `ours_default`, in the precision that ours chooses by
itself, is for information.

One process for each figure, alternating order. The last line is JSON: its `ours`, `theirs` (MiB) and `ratio` (ours /
theirs, lower is better) are those of the worst case, `cases` has all of them.
"""

from __future__ import annotations

import itertools
import resource
from pathlib import Path
from typing import Any

import side_by_side as bench

SIDES = ("ours", "theirs", "ours_default")


def measure(request: bench.Json) -> bench.Json:
    """Child: the peak of one side's whole run, and what was there before it began to train."""
    before: bench.Json = {}

    def look(_: Any) -> None:
        import torch

        before.update(before_training_mib=bench.round_off(peak_mib()), threads=torch.get_num_threads())

    callbacks = {"on_pretrain_routine_end": bench.use_all_cores, "on_train_start": look}
    side, arguments = request["side"], dict(request["arguments"])
    if side != "ours_default":
        arguments["amp"] = False
    bench.train(side, arguments, ours={"save.every": request["save_every"]}, callbacks=callbacks)
    return {"peak_mib": peak_mib(), **before}


def peak_mib() -> float:
    """The most memory that this process has had resident."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = bench.arguments(__doc__, repeats=3)
    parser.add_argument("--models", nargs="+", default=["yolov8n.yaml"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[320, 640], help="imgsz, in pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--fraction", type=float, default=0.25, help="share of the training images")
    parser.add_argument("--save-every", default="4steps", help="when ours saves, besides after each epoch")
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.batch, args.repeats, args.epochs, args.fraction = [64], 8, 1, 1, 0.11
    out = args.out / "memory"
    data = bench.data_set(args.data, args.out)
    cases = []
    for model, size_px in itertools.product(args.models, args.sizes):
        peaks: dict[str, list[float]] = {side: [] for side in SIDES}
        facts: dict[str, bench.Json] = {}
        for repeat, side in bench.alternating(args.repeats, SIDES):
            name = f"{Path(model).stem}-{size_px}-{side}-{repeat}"
            arguments = _arguments(args, model, size_px, data, out, name)
            answer = bench.in_child(
                {"side": side, "arguments": arguments, "save_every": args.save_every}, out=out, name=name
            )
            peaks[side].append(answer.pop("peak_mib"))
            facts[side] = answer
            bench.say(f"{name}: {peaks[side][-1]:.0f} MiB")
        sides = {side: {**bench.spread(values), **facts[side]} for side, values in peaks.items()}
        ratio = bench.round_off(sides["ours"]["median"] / sides["theirs"]["median"])
        cases.append({"model": model, "imgsz": size_px, "ratio": ratio, "sides": sides})
        bench.say(f"{model} at {size_px}: {ratio:.3f} of Ultralytics'")
    worst = max(cases, key=lambda case: float(case["ratio"]))
    bench.finish(
        "memory",
        ours=worst["sides"]["ours"],
        theirs=worst["sides"]["theirs"],
        ratio=worst["ratio"],
        repeats=args.repeats,
        args=args,
        unit="MiB",
        batch=args.batch,
        cases=cases,
    )


def _arguments(args: Any, model: str, size_px: int, data: Path, out: Path, name: str) -> bench.Json:
    return {
        "model": model,
        "data": str(data),
        "epochs": args.epochs,
        "imgsz": size_px,
        "batch": args.batch,
        "fraction": args.fraction,
        "device": args.device,
        "seed": 0,
        "close_mosaic": 0,
        "pretrained": False,
        "plots": False,
        "project": str(out / "runs"),
        "name": name,
    }


if __name__ == "__main__":
    bench.start(main, measure)

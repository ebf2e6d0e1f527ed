"""Accuracy: mean best mAP50-95 over seeds, steadyolo against Ultralytics, the same arguments on both sides.

yolov8n from scratch on bccd, 320 pixels, batch 16, 40 epochs; only the trainer differs, so ours trains in the
precision that it chooses by itself. A score is read from the run's `results.csv`: the best epoch's, and the last
one's for information.

The runs take hours on a CPU, so one that is finished is not made again (its folder is
`<out>/accuracy_parity/<side>-<seed>`); one of ours that was interrupted is resumed. `--theirs-runs FOLDER` takes
finished runs of Ultralytics, named `theirs-<seed>`, from elsewhere, and refuses those that had other arguments.
`--only ours` makes one side's runs and compares later.

One process for each run, alternating order. The last line is JSON: `ours` and `theirs` are mean best mAP50-95,
`ratio` = ours / theirs, `difference_points` = 100 x (ours - theirs), `seeds` has every run's best and last.
"""

from __future__ import annotations

import csv
import shutil
import statistics
from pathlib import Path
from typing import Any

import side_by_side as bench
import yaml

SIDES = ("ours", "theirs")
SCORE = "metrics/mAP50-95(B)"


def measure(request: bench.Json) -> bench.Json:
    """Child: make one run, whole."""
    arguments = request["arguments"]
    if request["side"] == "ours":
        from steadyolo.adapters.ultralytics.trainer import SteadyTrainer

        run = Path(arguments["project"]) / arguments["name"]
        begun = (run / "steadyolo" / "spec.json").is_file()
        overrides = {"task": "detect", "resume": str(run)} if begun else {"task": "detect", **arguments}
        SteadyTrainer(overrides=overrides).train()
    else:
        bench.train("theirs", arguments, callbacks={"on_pretrain_routine_end": bench.use_all_cores})
    return {}


def main() -> None:
    parser = bench.arguments(__doc__, repeats=3)
    parser.add_argument("--model", default="yolov8n.yaml")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--fraction", type=float, default=1.0, help="share of the training images")
    parser.add_argument("--only", choices=SIDES, help="make this side's runs only")
    parser.add_argument("--theirs-runs", type=Path, help="folder with finished runs theirs-0, theirs-1, ...")
    args = parser.parse_args()
    out = args.out / "accuracy_parity"
    if args.quick:
        args.imgsz, args.batch, args.epochs, args.repeats, args.fraction = 64, 8, 2, 2, 0.2
        out = args.out / "accuracy_parity.quick"
    data = bench.data_set(args.data, args.out)
    for seed, side in bench.alternating(args.repeats, [args.only] if args.only else SIDES):
        _make(side, seed, _arguments(args, data, seed), args, out)
    if args.only:
        bench.say(f"the runs of {args.only} are in {out}; compare without --only")
    _compare(args, out)


def _arguments(args: Any, data: Path, seed: int) -> bench.Json:
    return {
        "model": args.model,
        "data": str(data),
        "epochs": args.epochs,
        "imgsz": args.imgsz,
        "batch": args.batch,
        "fraction": args.fraction,
        "device": args.device,
        "seed": seed,
        "workers": 0,
        "pretrained": False,
        "plots": False,
        "exist_ok": True,
    }


def _make(side: str, seed: int, arguments: bench.Json, args: Any, out: Path) -> None:
    name = f"{side}-{seed}"
    run = _folder(side, seed, args, out)
    if _is_complete(side, run, args.epochs):
        _refuse_other_arguments(run, arguments)
        bench.say(f"{name}: taken from {run}")
        return
    run = out / name
    if run.exists() and (side == "theirs" or not (run / "steadyolo" / "spec.json").is_file()):
        shutil.rmtree(run)  # cut short; Ultralytics could not go on with it exactly
    elif run.exists():
        _refuse_other_arguments(run, arguments)
    request = {"side": side, "arguments": {**arguments, "project": str(out), "name": name}}
    bench.in_child(request, out=out, name=name)
    bench.say(f"{name}: best {max(_scores(run)):.4f}, last {_scores(run)[-1]:.4f}")


def _folder(side: str, seed: int, args: Any, out: Path) -> Path:
    """Where a run is: among those given, if it is there."""
    given = args.theirs_runs / f"theirs-{seed}" if side == "theirs" and args.theirs_runs else None
    return given if given is not None and _is_complete(side, given, args.epochs) else out / f"{side}-{seed}"


def _is_complete(side: str, run: Path, epochs: int) -> bool:
    if side == "ours":
        return (run / "steadyolo" / "finished.json").is_file()
    return (run / "results.csv").is_file() and len(_scores(run)) == epochs


def _refuse_other_arguments(run: Path, arguments: bench.Json) -> None:
    """Raise SystemExit where a run was made with other arguments than those asked for; paths may differ."""
    had = yaml.safe_load((run / "args.yaml").read_text(encoding="utf-8"))
    differing = [
        f"{name} {had.get(name)} instead of {value}"
        for name, value in arguments.items()
        if name not in {"data", "exist_ok"} and had.get(name) != value
    ]
    if differing:
        raise SystemExit(f"{run} was made with {', '.join(differing)}: move it away, or ask for the same")


def _scores(run: Path) -> list[float]:
    with (run / "results.csv").open(encoding="utf-8", newline="") as file:
        return [float(row[SCORE]) for row in csv.DictReader(file, skipinitialspace=True)]


def _compare(args: Any, out: Path) -> None:
    seeds: list[bench.Json] = []
    for seed in range(args.repeats):
        runs = {side: _folder(side, seed, args, out) for side in SIDES}
        scores = {side: _scores(run) for side, run in runs.items() if _is_complete(side, run, args.epochs)}
        best = {side: {"best": max(values), "last": values[-1]} for side, values in scores.items()}
        seeds.append({"seed": seed, **best})
    means = {
        side: {which: _mean([row[side][which] for row in seeds if side in row]) for which in ("best", "last")}
        for side in SIDES
    }
    ours, theirs = means["ours"]["best"], means["theirs"]["best"]
    bench.finish(
        "accuracy_parity",
        ours=ours,
        theirs=theirs,
        ratio=ours / theirs if ours and theirs else None,
        repeats=args.repeats,
        args=args,
        unit="mean best mAP50-95",
        difference_points=_points(ours, theirs),
        difference_last_points=_points(means["ours"]["last"], means["theirs"]["last"]),
        means=means,
        seeds=seeds,
        model=args.model,
        imgsz=args.imgsz,
        batch=args.batch,
        epochs=args.epochs,
    )


def _points(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else bench.round_off(100 * (ours - theirs))


def _mean(values: list[float]) -> float | None:
    return bench.round_off(statistics.fmean(values)) if values else None


if __name__ == "__main__":
    bench.start(main, measure)

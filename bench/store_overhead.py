"""What it costs training to save every 30 s to a store: when the store is healthy, and when it is down.

Three sides, a process for each measurement, in alternating order: `nothing` trains without saving (`save.every` is
longer than the process lives, and there is no store); `healthy` saves at the interval and uploads each save to
SeaweedFS (`store.url`); `down` does the same, but its server is killed with SIGKILL when the timed part begins. The
data set is bccd listed many times, so that no epoch ends, and saves, in between. Each side's images/s are those of its
timed part, and `ratio` compares medians.

The goal is 1 %, and a shared machine's speed changes by several from minute to minute. `lost_share` is therefore the
finer estimate: from one save to the next, the batches that overlapped a save (the loop's part of it, the writing
behind) or anything that the uploader did (uploading, mirroring, looking after its claim, failing) are compared with
the others of the same interval; what they took longer, together, divided by the interval is one value. Mean and 95 %
interval are over all intervals of all processes. What `healthy` loses beyond `down`, which saves as often, is the
uploads' part. `control` is the same estimate on the side that does nothing, with busy stretches of the same length and
spacing as `healthy` had: it should find nothing. A cost that is always there would escape it; that shows in images/s.

The server runs on the cores that train, which in real life it does not: it is started with a niceness of 10 more than
training's, and `server` tells what it took of all cores in the timed part. Where every core trains, that is taken from
training: `lost_share_less_server` is the mean for `healthy` without it, the least that it can be. Run this script with
no niceness of its own: nothing can give way to training any more that is at the bottom already.

`--minutes` is the length of one process. The last line is JSON: `ours` has images/s of `healthy` and `down`, `theirs`
that of `nothing`; `events` prove that saves were uploaded, or failed to be. Exit code 1 where they were not.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import side_by_side as bench
import store_server

SIDES = ("nothing", "healthy", "down")
WARM_UP_S = 10.0
LINGER_S = 0.5  # what was done may go on being felt: write-back, the server's own work
MIN_QUIET = 3  # batches that an interval must have for comparison

Stretch = tuple[float, float]


def measure(request: bench.Json) -> bench.Json:
    """Child: when each batch ended, and what went on behind them."""
    from steadyolo import events
    from steadyolo.adapters.ultralytics.run import UltralyticsRun
    from steadyolo.adapters.ultralytics.trainer import SteadyTrainer
    from steadyolo.vault.uploader import Uploader

    began_s = time.perf_counter()
    ends_s: list[float] = []
    saves_s: list[float] = []
    saving: list[Stretch] = []
    copying: list[Stretch] = []
    counts: Counter[str] = Counter()
    timed: bench.Json = {}
    save, work_once, server = UltralyticsRun.save, Uploader.work_once, request.get("server")

    def noted_save(run: Any, state: Any, **how: Any) -> None:
        saves_s.append(time.perf_counter())
        save(run, state, **how)

    def noted_work(uploader: Any) -> float:
        at_s = time.perf_counter()
        try:
            return work_once(uploader)
        finally:
            copying.append((at_s, time.perf_counter()))

    def heard(event: events.Event) -> None:
        if isinstance(event, events.SaveCommitted):
            saving.append((saves_s[-1], time.perf_counter()))
        if timed:
            counts[event.kind] += 1

    @contextmanager
    def watch(log: events.EventLog, _: Path) -> Iterator[None]:
        log.subscribe(heard)
        yield

    def after_batch(_: Any) -> None:
        now_s = time.perf_counter()
        ends_s.append(now_s)
        if not timed and now_s - ends_s[0] > request["warm_up_s"]:
            timed.update(from_s=now_s, server_cpu_s=store_server.cpu_s(server) if server else 0.0)
            if server and request["side"] == "down":
                os.kill(server, signal.SIGKILL)
        if timed and now_s - timed["from_s"] > request["timed_s"]:
            raise bench.Measured

    SteadyTrainer.watchers.append(watch)
    with patch.object(UltralyticsRun, "save", noted_save), patch.object(Uploader, "work_once", noted_work):
        bench.train("ours", request["arguments"], ours=request["ours"], callbacks={"on_train_batch_end": after_batch})
    server_cpu_s = 0.0
    if request["side"] == "healthy":
        server_cpu_s = store_server.cpu_s(server) - timed["server_cpu_s"]
    return {
        "start_up_s": ends_s[0] - began_s,
        "from_s": timed["from_s"],
        "ends_s": ends_s,
        "saving": saving,
        "copying": copying,
        "events": counts,
        "server_cpu_s": server_cpu_s,
    }


# -- the finer estimate --------------------------------------------------------------------------------------------


def lost_shares(answer: bench.Json) -> list[float]:
    """For each interval from one save to the next: the share of it that the busy batches took longer than others."""
    batches = list(itertools.pairwise(answer["ends_s"]))
    starts_s = [begin for begin, _ in answer["saving"] if begin >= answer["from_s"]]
    lost = []
    for start_s, stop_s in itertools.pairwise(starts_s):
        busy, quiet = [], []
        for batch in batches:
            if start_s < batch[1] <= stop_s:
                is_busy = _overlaps(batch, answer["saving"]) or _overlaps(batch, answer["copying"])
                (busy if is_busy else quiet).append(batch[1] - batch[0])
        if len(quiet) >= MIN_QUIET:
            usual_s = statistics.fmean(quiet)
            lost.append(sum(took_s - usual_s for took_s in busy) / (stop_s - start_s))
    return lost


def _overlaps(batch: Stretch, stretches: Sequence[Stretch]) -> bool:
    return any(begin < batch[1] and batch[0] < end + LINGER_S for begin, end in stretches)


def with_pretended_work(answer: bench.Json, models: Sequence[bench.Json], every_s: float) -> bench.Json:
    """`answer` of the side that does nothing, as if it had done what `models` did, as often and for as long."""
    saving_s = statistics.fmean(_lengths_s(models, "saving"))
    copying_s = statistics.fmean(_lengths_s(models, "copying"))
    last_s = answer["ends_s"][-1]
    starts_s = [answer["from_s"] + n * every_s for n in range(1, int((last_s - answer["from_s"]) / every_s) + 1)]
    saving = [(start, start + saving_s) for start in starts_s]
    return {**answer, "saving": saving, "copying": [(end, end + copying_s) for _, end in saving]}


def _lengths_s(answers: Sequence[bench.Json], what: str) -> list[float]:
    """How long each timed stretch of work was; of the uploader, only what took longer than a look."""
    found = [end - begin for each in answers for begin, end in each[what] if begin >= each["from_s"]]
    return [length for length in found if length > 0.05] or [0.0]


# -- the parent ----------------------------------------------------------------------------------------------------


def main() -> None:
    parser = bench.arguments(__doc__, repeats=3)
    parser.add_argument("--minutes", type=float, default=6.0, help="timed part of each process")
    parser.add_argument("--save-every-s", type=float, default=30.0)
    parser.add_argument("--model", default="yolov8n.yaml")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, help="threads that compute (all cores)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    args = parser.parse_args()
    warm_up_s = WARM_UP_S
    if args.quick:
        args.minutes, args.save_every_s, args.imgsz, args.batch, args.repeats = 0.1, 2.0, 64, 4, 1
        args.threads, warm_up_s = 1, 1.0
    out = args.out / "store_overhead"
    shutil.rmtree(out / "runs", ignore_errors=True)
    fastest = 30 * bench.num_cores() if args.device == "cpu" else 3000  # images a second, surely
    many = bench.listed_often(
        bench.data_set(args.data, args.out), out / "listed-often", int(fastest * 60 * (args.minutes + 2))
    )
    answers: dict[str, list[bench.Json]] = {side: [] for side in args.sides}
    for repeat, side in bench.alternating(args.repeats, args.sides):
        request = {
            "side": side,
            "warm_up_s": warm_up_s,
            "timed_s": 60 * args.minutes,
            "arguments": _arguments(args, many, out, f"{side}-{repeat}"),
        }
        answers[side].append(_measured(request, args, out))
        bench.say(f"{side}-{repeat}: {_speed(answers[side][-1], args.batch):.2f} images/s")
    _finish(answers, args)


def _measured(request: bench.Json, args: Any, out: Path) -> bench.Json:
    name = request["arguments"]["name"]
    threads = {"cpu.threads": str(args.threads)} if args.threads else {}
    if request["side"] == "nothing":
        return bench.in_child({**request, "ours": {**threads, "save.every": "10h"}}, out=out, name=name)
    with store_server.store_server(out / "server") as server:
        ours = {**threads, "save.every": f"{args.save_every_s}s", "store.url": server.url("overhead")}
        return bench.in_child({**request, "ours": ours, "server": server.pid}, out=out, name=name)


def _speed(answer: bench.Json, batch: int) -> float:
    """Images a second of the timed part."""
    ends_s = [end for end in answer["ends_s"] if end >= answer["from_s"]]
    return batch * (len(ends_s) - 1) / (ends_s[-1] - ends_s[0])


def _finish(answers: dict[str, list[bench.Json]], args: Any) -> None:
    speeds = {side: bench.spread([_speed(one, args.batch) for one in each]) for side, each in answers.items()}
    if "nothing" in answers and "healthy" in answers:
        pretended = [with_pretended_work(one, answers["healthy"], args.save_every_s) for one in answers["nothing"]]
        answers = {**answers, "control": pretended}
    lost = {side: _interval(each) for side, each in answers.items() if side != "nothing"}
    events = {side: sum((Counter(one["events"]) for one in each), Counter()) for side, each in answers.items()}
    nothing = speeds.pop("nothing", None)
    ratio = {side: bench.round_off(speed["median"] / nothing["median"]) for side, speed in speeds.items() if nothing}
    server_share = statistics.fmean([_server_share(one) for one in answers.get("healthy", [])] or [0.0])
    healthy = lost.get("healthy")
    copies, fails = (events.get(side, Counter()) for side in ("healthy", "down"))
    healthy_is_sound = "healthy" not in answers or (copies["copy_verified"] and not copies["copy_failed"])
    down_is_sound = "down" not in answers or (fails["copy_failed"] and not fails["copy_verified"])
    bench.finish(
        "store_overhead",
        ours=speeds,
        theirs=nothing,
        ratio=ratio,
        repeats=args.repeats,
        args=args,
        unit="images/s: saving to a store (ours) against not saving at all (theirs)",
        lost_share=lost,
        lost_share_less_server=bench.round_off(healthy["mean"] - server_share) if healthy else None,
        save_every_s=args.save_every_s,
        model=args.model,
        imgsz=args.imgsz,
        batch=args.batch,
        seconds_of_work={
            side: {what: bench.round_off(statistics.fmean(_lengths_s(each, what))) for what in ("saving", "copying")}
            for side, each in answers.items()
            if side in speeds
        },
        server={
            "niceness_above_training": store_server.NICENESS,
            "cpu_share": bench.round_off(server_share),
        },
        events={side: dict(counts) for side, counts in events.items() if side in speeds},
        proven=bool(healthy_is_sound and down_is_sound),
    )
    sys.exit(0 if healthy_is_sound and down_is_sound else 1)


def _interval(answers: Sequence[bench.Json]) -> bench.Json | None:
    """Mean and interval over all that `lost_shares` finds in `answers`; None where there was nothing to compare."""
    lost = [share for answer in answers for share in lost_shares(answer)]
    return bench.interval(lost) if lost else None


def _server_share(answer: bench.Json) -> float:
    """What the server took of all cores."""
    timed_s = answer["ends_s"][-1] - answer["from_s"]
    return float(answer["server_cpu_s"]) / timed_s / bench.num_cores()


def _arguments(args: Any, data: Path, out: Path, name: str) -> bench.Json:
    return {
        "model": args.model,
        "data": str(data),
        "imgsz": args.imgsz,
        "batch": args.batch,
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

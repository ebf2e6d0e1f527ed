"""Machines that die while they train: our copies in a store against copying Ultralytics' run folder from cron.

Part a, kills. Three sides train yolov8n from scratch on small boards, with the same interval:
`ours` saves and uploads to SeaweedFS (`save.every`, `store.url`);
`rsync` is plain Ultralytics, beside which a process runs `rsync -a` of the run folder into another one (where there is
no rsync, the same is done in Python: what changed in size or time goes to a temporary name and is renamed);
`sync` is plain Ultralytics, beside which a process does what `aws s3 sync` does: it puts the files whose size or time
changed into the store, as they are at that moment.
The machine dies at an instant drawn uniformly over the training of an undisturbed run, the same ones for each side:
SIGKILL for the whole process group, and the run folder is deleted. What the copy holds is then restored and resumed:
`steadyolo resume URL` on ours; on the others the folder is put back where it was, and `train(resume=True)` is called
on its `last.pt`, with `best.pt` if that fails. A run is restorable when that trains to its end; it is exact when its
result equals the undisturbed run's (ours: `run_identity`; theirs: every tensor in the final `last.pt`, where the
undisturbed runs of `rsync` and `sync` are compared with each other too, as a control). Work lost is the time from the
state that was restored to the death: for theirs from the end of that epoch's training, for ours from the moment when
the writing of that save began. What cannot be restored loses all since training began.

Part b, a machine that disappears. yolov8n trains on bccd at 320 with `save.every` as it is by default and a healthy
store, for `--minutes`, and dies; the folder is deleted, `steadyolo resume URL` goes on on another one, and dies again,
`--deaths` times in all. From the events of all these lives (when each save was taken, when its copy was verified)
follows the work that a death would lose at any instant of them: `simulated` has its exact distribution over all
instants. `real` are the deaths that happened, each with what the events foretold. The goal is a p99 of 60 s.

The last line is JSON: `ours` and `theirs` are part a's shares and work lost, `ratio` is our median work lost over the
better of theirs, `machine_loss` is part b. Exit code 1 where one of ours could not be restored though a copy of it had
been verified, or was not exact.
"""

from __future__ import annotations

import bisect
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import resume_exact
import side_by_side as bench
import store_server

from steadyolo.events import read_events

SIDES = ("ours", "rsync", "sync")
NAME = "run"
TIMELINE = "timeline.jsonl"  # when theirs had what, kept beside the run folder for the bench alone
LOOK_S = 0.05
TIMEOUT_S = 900.0
WEIGHTS = ("last.pt", "best.pt")


# -- copying as cron does it ---------------------------------------------------------------------------------------


def copy_in_loop(request: bench.Json) -> None:
    """Copy the run folder every so often until the process group is killed."""
    source, seen = Path(request["run"]), dict[str, tuple[int, int]]()
    while True:
        time.sleep(request["every_s"])
        if source.is_dir():
            COPIERS[request["side"]](source, request["copy"], seen)


def _rsync(source: Path, copy: str, seen: dict[str, tuple[int, int]]) -> None:
    if shutil.which("rsync"):
        subprocess.run(["rsync", "-a", f"{source}/", f"{copy}/"], check=False)
        return
    for name, path in _changed(source, seen):
        target = Path(copy) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target.with_name(f".{target.name}.partial"))
        target.with_name(f".{target.name}.partial").replace(target)


def _sync(source: Path, copy: str, seen: dict[str, tuple[int, int]]) -> None:
    import obstore

    store = _obstore(copy)
    for name, path in _changed(source, seen):
        obstore.put(store, name, path.read_bytes())


COPIERS: dict[str, Callable[[Path, str, dict[str, tuple[int, int]]], None]] = {"rsync": _rsync, "sync": _sync}


def _changed(source: Path, seen: dict[str, tuple[int, int]]) -> Iterator[tuple[str, Path]]:
    """Files whose size or time is not what it was when they were last copied. One that vanishes is left out."""
    for path in sorted(source.rglob("*")):
        try:
            if not path.is_file():
                continue
            stat = path.stat()
            name = path.relative_to(source).as_posix()
            if seen.get(name) != (stat.st_size, stat.st_mtime_ns):
                yield name, path
                seen[name] = (stat.st_size, stat.st_mtime_ns)
        except FileNotFoundError:
            continue


def put_back(side: str, copy: str, run: Path) -> None:
    """Restore what was copied to where it was."""
    if side == "rsync":
        if Path(copy).is_dir():
            shutil.copytree(copy, run)
        return
    import obstore

    store = _obstore(copy)
    for batch in obstore.list(store):
        for meta in batch:
            target = run / meta["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(memoryview(obstore.get(store, meta["path"]).bytes()))


def _obstore(url: str) -> Any:
    from steadyolo.adapters.objects.opening import open_store
    from steadyolo.spec.location import parse_location

    return open_store(parse_location(url))._store()  # type: ignore[attr-defined]


def measure(request: bench.Json) -> bench.Json:
    """Child: train with Ultralytics, with a copier in the same process group; or resume; or be that copier."""
    if request["does"] == "copy":
        copy_in_loop(request)
    from ultralytics import YOLO

    if request["does"] == "resume":
        YOLO(request["weights"]).train(resume=True)
        return {}
    model, timeline = YOLO(request["arguments"]["model"]), Path(request["timeline"])
    timeline.parent.mkdir(parents=True, exist_ok=True)

    def note(kind: str) -> Callable[[Any], None]:
        def noted(trainer: Any) -> None:
            line = {"kind": kind, "epoch": getattr(trainer, "epoch", -1), "at": time.time()}
            with timeline.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

        return noted

    model.add_callback("on_train_start", note("begun"))
    model.add_callback("on_train_epoch_end", note("trained"))
    copier = None
    if request["copier"]:
        words = [sys.executable, sys.argv[0], "--child", json.dumps(request["copier"]), os.devnull]
        copier = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    try:
        model.train(**request["arguments"])
    finally:
        if copier is not None:
            copier.kill()
            copier.wait()
    return {}


# -- part a: deaths and what is left -------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Death:
    """One machine's end, and what came after it."""

    after_s: float  # of training
    restored: bool = False
    from_weights: str = ""
    lost_s: float = 0.0
    exact: bool = False
    had_copy: bool = False  # a copy was complete before the death
    error: str = ""

    def to_json(self) -> bench.Json:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class Course:
    """How a side's undisturbed run went: what it came out with, and how long it trained."""

    outcome: dict[str, str]
    training_s: float  # the shortest so far: a machine may get faster
    repeatable: bool | None = None  # an undisturbed run of the same came out with the same; None: not tried
    num_missed: int = 0  # deaths that came after the end of training
    deaths: list[Death] = field(default_factory=list)


class Ours:
    """Our run of part a, in the way that both kinds are driven."""

    def __init__(self, args: Any, data: Path, out: Path, url: str) -> None:
        self._args, self._out, self._url = args, out, url
        threads = {"cpu.threads": args.threads} if args.threads else {}
        self._pairs = {**_arguments(args, data), **threads, "save.every": f"{args.interval_s}s"}

    def start(self, label: str) -> resume_exact.Attempt:
        given = {**self._pairs, "store.url": self._place(label), "project": self._out / label, "name": NAME}
        return self._start(["train", *(f"{name}={value}" for name, value in given.items())], label)

    def training_began(self, label: str) -> float | None:
        return _first_at(self._events(label), "run_started")

    def training_ended(self, label: str) -> float | None:
        closed = [_at(event) for event in self._events(label) if event["kind"] == "epoch_closed"]
        return closed[-1] if len(closed) >= self._args.epochs else None

    def outcome(self, label: str) -> dict[str, str]:
        from steadyolo.vault.identity import run_identity

        return run_identity(self._out / label / NAME)

    def recover(self, label: str, died: float, death: Death) -> None:
        """Resume from the store on an empty folder, to the end."""
        events = self._events(label)
        death.had_copy = any(event["kind"] == "copy_verified" for event in events)
        shutil.rmtree(self._out / label)
        fresh = f"{label}-restored"
        url = self._place(label).replace("?", f"/{NAME}?", 1)
        attempt = self._start(["resume", url, f"project={self._out / fresh}"], fresh)
        try:
            code = attempt.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:  # a recovery that does not end is a failed one, not the end of the bench
            attempt.kill()
            code = attempt.process.returncode
        resumed = [event for event in self._events(fresh) if event["kind"] == "resumed"]
        death.restored = code == 0 and bool(resumed)
        death.error = "" if death.restored else f"exit code {code}: {_tail(self._out / f'{fresh}.log')}"
        taken = {name: at for name, at in taken_at(events).items() if resumed and name == resumed[-1]["name"]}
        death.lost_s = died - max(taken.values(), default=_first_at(events, "run_started") or died)

    def _start(self, words: list[str], label: str) -> resume_exact.Attempt:
        run = self._out / label / NAME
        return resume_exact.start_attempt(
            resume_exact.steadyolo(*words), run, out=self._args.out, log=self._out / f"{label}.log"
        )

    def _events(self, label: str) -> list[bench.Json]:
        return list(read_events(self._out / label / NAME / "steadyolo" / "events.jsonl"))

    def _place(self, label: str) -> str:
        return self._url.replace("?", f"/{label}?", 1)


class Theirs:
    """A run of Ultralytics that is copied from outside."""

    def __init__(self, side: str, args: Any, data: Path, out: Path, url: str) -> None:
        self._side, self._args, self._out, self._url = side, args, out, url
        self._arguments = {**_arguments(args, data), "exist_ok": True}

    def start(self, label: str) -> resume_exact.Attempt:
        run = self._out / label / NAME
        copier = {
            "does": "copy",
            "side": self._side,
            "run": str(run),
            "copy": self._copy(label),
            "every_s": self._args.interval_s,
        }
        request = {
            "does": "train",
            "arguments": {**self._arguments, "project": str(run.parent), "name": NAME},
            "timeline": str(self._out / f"{label}-{TIMELINE}"),
            "copier": copier,
        }
        command = [sys.executable, sys.argv[0], "--child", json.dumps(request), os.devnull]
        return resume_exact.start_attempt(command, run, out=self._args.out, log=self._out / f"{label}.log")

    def training_began(self, label: str) -> float | None:
        return next((line["at"] for line in self._timeline(label) if line["kind"] == "begun"), None)

    def training_ended(self, label: str) -> float | None:
        trained = [line["at"] for line in self._timeline(label) if line["kind"] == "trained"]
        return trained[-1] if len(trained) >= self._args.epochs else None

    def outcome(self, label: str) -> dict[str, str]:
        return {"last.pt": resume_exact.weights_digest(self._out / label / NAME / "weights" / "last.pt")}

    def recover(self, label: str, died: float, death: Death) -> None:
        """Put the copy back and resume, from `best.pt` if `last.pt` fails."""
        run = self._out / label / NAME
        shutil.rmtree(run, ignore_errors=True)
        trained = {line["epoch"]: line["at"] for line in self._timeline(label) if line["kind"] == "trained"}
        state_at = self.training_began(label) or died
        for weights in WEIGHTS:
            shutil.rmtree(run, ignore_errors=True)
            put_back(self._side, self._copy(label), run)
            path = run / "weights" / weights
            death.had_copy = death.had_copy or path.is_file()
            if not path.is_file():
                death.error = death.error or f"no {weights} in the copy"
                continue
            epoch = _epoch_of(path)
            try:
                request = {"does": "resume", "weights": str(path)}
                bench.in_child(request, out=self._out, name=f"{label}-from-{path.stem}")
            except SystemExit as error:
                death.error = str(error)[-500:]
                continue
            death.restored, death.from_weights, death.error = True, weights, ""
            state_at = trained.get(epoch, state_at)
            break
        death.lost_s = died - state_at

    def _timeline(self, label: str) -> list[bench.Json]:
        path = self._out / f"{label}-{TIMELINE}"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def _copy(self, label: str) -> str:
        if self._side == "rsync":
            return str(self._out / f"{label}-copy")
        return self._url.replace("?", f"/{label}?", 1)


def _epoch_of(weights: Path) -> int:
    """The epoch that an Ultralytics checkpoint was saved after; -1 where it cannot be read."""
    import torch

    try:
        return int(torch.load(weights, map_location="cpu", weights_only=False)["epoch"])  # made by this bench
    except Exception:  # noqa: BLE001 - torn in any way
        return -1


def taken_at(events: Sequence[bench.Json]) -> dict[str, float]:
    """When the state of each save was taken, by name: at the latest when its writing began."""
    return {event["name"]: _at(event) - event["seconds"] for event in events if event["kind"] == "save_committed"}


def undisturbed(side: Ours | Theirs, label: str) -> Course:
    attempt = side.start(label)
    if attempt.process.wait(TIMEOUT_S):
        raise SystemExit(f"the undisturbed run {label} failed with exit code {attempt.process.returncode}")
    began, ended = side.training_began(label), side.training_ended(label)
    if began is None or ended is None:
        raise SystemExit(f"the undisturbed run {label} left no word of its training")
    return Course(side.outcome(label), ended - began)


def kill_one(side: Ours | Theirs, label: str, share: float, course: Course) -> Death | None:
    """Let a machine die after that share of a run's training; None when the run was over by then."""
    attempt, after_s = side.start(label), share * course.training_s
    while attempt.process.poll() is None:
        began = side.training_began(label)
        if began is not None and time.time() - began >= after_s:
            break
        time.sleep(LOOK_S)
    died = time.time()
    if not attempt.kill() and attempt.process.returncode:
        raise SystemExit(f"{label} failed by itself, with exit code {attempt.process.returncode}")
    if (ended := side.training_ended(label)) is not None:  # what follows is no training; theirs cannot be resumed then
        course.training_s = min(course.training_s, ended - (side.training_began(label) or ended))
        return None
    death = Death(after_s=bench.round_off(after_s))
    side.recover(label, died, death)
    return death


def part_a(args: Any, server: Any, out: Path) -> dict[str, Course]:
    data = bench.boards(args.out, num_train=args.images, num_val=8, size_px=(160, 128))
    url = server.url("backup")
    makers = {side: _side(side, args, data, out / side, url.replace("?", f"/{side}?", 1)) for side in args.sides}
    courses: dict[str, Course] = {}
    for side, maker in makers.items():
        (out / side).mkdir(parents=True)
        courses[side] = undisturbed(maker, "undisturbed")
        bench.say(f"{side}: undisturbed in {courses[side].training_s:.1f} s of training")
    theirs = [course for side, course in courses.items() if side != "ours"]  # the same training, copied differently
    for course in theirs if len(theirs) > 1 else []:
        course.repeatable = all(other.outcome == course.outcome for other in theirs)
    draws = random.Random(args.seed)
    for number in range(args.kills):
        share = draws.random()
        for side in args.sides if number % 2 == 0 else reversed(args.sides):
            label = f"killed-{number}"
            death = kill_one(makers[side], label, share, courses[side])
            if death is None:
                courses[side].num_missed += 1
                bench.say(f"{side}: training was over before the kill")
                continue
            restored = out / side / (f"{label}-restored" if side == "ours" else label)
            if death.restored:
                death.exact = makers[side].outcome(restored.name) == courses[side].outcome
            courses[side].deaths.append(death)
            bench.say(f"{side}: {_told(death)}")
            for left in (out / side).glob(f"{label}*"):
                if left.is_dir() and (death.restored or not death.had_copy):
                    shutil.rmtree(left)  # what went wrong is evidence
    return courses


def _side(side: str, args: Any, data: Path, out: Path, url: str) -> Ours | Theirs:
    return Ours(args, data, out, url) if side == "ours" else Theirs(side, args, data, out, url)


def _told(death: Death) -> str:
    what = "restored" if death.restored else "NOT restored" if death.had_copy else "no copy yet"
    exact = ", exact" if death.exact else ", differs" if death.restored else ""
    return f"died after {death.after_s:.1f} s of training, {what}{exact}, {death.lost_s:.1f} s of work lost"


# -- part b: a machine that disappears -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Loss:
    """Over one stretch of time the work that a death loses grows from `least_s` to `most_s`, second by second."""

    least_s: float
    most_s: float


def foretold(events: Sequence[bench.Json], died: float) -> list[Loss]:
    """What a death would lose at each instant of one process's training, until it died."""
    began = _first_at(events, "run_started")
    if began is None:
        return []
    taken = taken_at(events)
    restorable_at, since, losses = began, began, list[Loss]()
    verified = [event for event in events if event["kind"] == "copy_verified" and event["tier"] == "store"]
    for event in verified:
        at, state_at = _at(event), taken.get(event["name"], began)
        if state_at > restorable_at:
            losses.append(Loss(since - restorable_at, at - restorable_at))
            restorable_at, since = state_at, at
    losses.append(Loss(since - restorable_at, died - restorable_at))
    return losses


def distribution(losses: Sequence[Loss]) -> bench.Json:
    """Of the work lost by a death at an instant drawn uniformly over all of them; exact."""
    total_s = sum(loss.most_s - loss.least_s for loss in losses)

    def share_up_to(lost_s: float) -> float:
        return sum(max(0.0, min(lost_s, loss.most_s) - loss.least_s) for loss in losses) / total_s

    edges_s = sorted({edge for loss in losses for edge in (loss.least_s, loss.most_s)})
    shares = [share_up_to(edge) for edge in edges_s]

    def quantile_s(share: float) -> float:
        above = min(max(bisect.bisect_left(shares, share - 1e-12), 1), len(edges_s) - 1)
        low, high = shares[above - 1], shares[above]
        inside = (share - low) / (high - low) if high > low else 1.0
        return edges_s[above - 1] + inside * (edges_s[above] - edges_s[above - 1])

    return {
        "median_s": bench.round_off(quantile_s(0.5)),
        "p99_s": bench.round_off(quantile_s(0.99)),
        "worst_s": bench.round_off(edges_s[-1]),
        "over_s": bench.round_off(total_s),
    }


def part_b(args: Any, server: Any, out: Path) -> bench.Json:
    """Lives of one run, each ended by SIGKILL and the loss of its folder."""
    data, url = bench.data_set(args.data, args.out), server.url("loss")
    given = {**_arguments(args, data), "epochs": 1000, "imgsz": args.imgsz, "batch": args.batch, "store.url": url}
    given |= {"cpu.threads": args.threads} if args.threads else {}
    draws = random.Random(args.seed)
    lives_s = [60 * args.minutes, *(draws.uniform(1.0, 60 * args.life_minutes) for _ in range(args.deaths - 1))]
    out.mkdir(parents=True)
    losses: list[Loss] = []
    real: list[bench.Json] = []
    died, log = 0.0, list[bench.Json]()
    for number in range(args.deaths + 1):
        project = out / f"life-{number}"
        if number == 0:
            words = [
                "train",
                *(f"{name}={value}" for name, value in given.items()),
                f"project={project}",
                f"name={NAME}",
            ]
        else:
            words = ["resume", url.replace("?", f"/{NAME}?", 1), f"project={project}"]
        born = time.time()
        attempt = resume_exact.start_attempt(
            resume_exact.steadyolo(*words), project / NAME, out=args.out, log=out / f"life-{number}.log"
        )
        began = _wait_for_training(attempt, project / NAME, born)
        if number:
            real.append(_real_death(project / NAME, born, died, log))
            bench.say(f"death {number}: {real[-1]['lost_s']:.1f} s of work lost, {real[-1]['foretold_s']:.1f} foretold")
        if number == args.deaths:
            attempt.kill()
            break
        while attempt.process.poll() is None and time.time() - began < lives_s[number]:
            time.sleep(LOOK_S)
        died = time.time()
        if not attempt.kill():
            raise SystemExit(f"the run ended by itself; see {out / f'life-{number}.log'}")
        log = [event for event in read_events(project / NAME / "steadyolo" / "events.jsonl") if _at(event) >= born]
        losses += foretold(log, died)
        shutil.rmtree(project)
    simulated = distribution(losses)
    bench.say(f"a death at any instant: p99 {simulated['p99_s']:.1f} s of work lost")
    return {"simulated": simulated, "real": real, "real_worst_s": max(one["lost_s"] for one in real)}


def _wait_for_training(attempt: resume_exact.Attempt, run: Path, born: float) -> float:
    while attempt.process.poll() is None:
        events = read_events(run / "steadyolo" / "events.jsonl", {"step_done"})
        if any(_at(event) >= born for event in events):
            return time.time()
        time.sleep(LOOK_S)
    raise SystemExit(f"{run} did not train: {_tail(run.parent.with_suffix('.log'))}")


def _real_death(run: Path, born: float, died: float, before: Sequence[bench.Json]) -> bench.Json:
    """What a death cost, as the resumed run says, and as the events before it foretold."""
    events = [event for event in read_events(run / "steadyolo" / "events.jsonl") if _at(event) >= born]
    name = next(event["name"] for event in events if event["kind"] == "resumed")
    state_at = taken_at(before).get(name, _first_at(before, "run_started") or died)
    return {
        "resumed_from": name,
        "lost_s": bench.round_off(died - state_at),
        "foretold_s": bench.round_off(foretold(before, died)[-1].most_s),
    }


# -- the parent ----------------------------------------------------------------------------------------------------


def _at(event: bench.Json) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def _first_at(events: Sequence[bench.Json], kind: str) -> float | None:
    return next((_at(event) for event in events if event["kind"] == kind), None)


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-500:] if log.is_file() else ""


def _arguments(args: Any, data: Path) -> bench.Json:
    return {
        "model": "yolov8n.yaml",
        "data": str(data),
        "epochs": args.epochs,
        "imgsz": 64,
        "batch": 8,
        "seed": args.seed,
        "device": args.device,
        "pretrained": False,
        "plots": False,
    }


def summary(course: Course) -> bench.Json:
    """A side's deaths in figures."""
    deaths = course.deaths
    restored = [death for death in deaths if death.restored]
    lost_s = [death.lost_s for death in deaths]
    return {
        "deaths": len(deaths),
        "came_too_late": course.num_missed,
        "restorable_share": bench.round_off(len(restored) / len(deaths)) if deaths else None,
        "died_before_a_copy": sum(not death.had_copy for death in deaths),
        "from_best_pt": sum(death.from_weights == "best.pt" for death in deaths),
        "exact_share": bench.round_off(sum(death.exact for death in restored) / len(restored)) if restored else None,
        "lost_s": {
            "median": bench.round_off(statistics.median(lost_s)),
            "p99": bench.round_off(bench.percentile(lost_s, 0.99)),
            "worst": bench.round_off(max(lost_s)),
        }
        if deaths
        else None,
        "undisturbed_training_s": bench.round_off(course.training_s),
        "undisturbed_is_repeatable": course.repeatable,
        "each": [death.to_json() for death in deaths],
    }


def main() -> None:
    parser = bench.arguments(__doc__, repeats=1)
    parser.add_argument("--part", choices=("a", "b", "both"), default="both")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="of part a")
    parser.add_argument("--kills", type=int, default=20, help="deaths of each side in part a")
    parser.add_argument("--interval-s", type=float, default=10.0, help="between saves and between copies in part a")
    parser.add_argument("--epochs", type=int, default=20, help="of part a")
    parser.add_argument("--images", type=int, default=160, help="of part a; they say how long an epoch takes")
    parser.add_argument("--minutes", type=float, default=20.0, help="first life of part b")
    parser.add_argument("--deaths", type=int, default=10, help="of part b")
    parser.add_argument("--life-minutes", type=float, default=2.0, help="longest of the later lives of part b")
    parser.add_argument("--imgsz", type=int, default=320, help="of part b")
    parser.add_argument("--batch", type=int, default=16, help="of part b")
    parser.add_argument("--threads", type=int, help="threads that ours computes on (all cores)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.quick:
        args.kills, args.deaths, args.epochs, args.images, args.interval_s = 1, 1, 3, 16, 1.0
        args.minutes, args.imgsz, args.batch, args.threads, args.sides = 0.1, 64, 4, 1, ["ours", "sync"]
    args.repeats = args.kills
    out = args.out / "backup_compare"
    shutil.rmtree(out, ignore_errors=True)
    courses: dict[str, Course] = {}
    machine_loss: bench.Json = {}
    with store_server.store_server(out / "server") as server:
        try:
            if args.part != "b":
                courses = part_a(args, server, out / "kills")
            if args.part != "a":
                machine_loss = part_b(args, server, out / "loss")
        finally:
            resume_exact.abandon()
    summaries = {side: summary(course) for side, course in courses.items()}
    ours = summaries.pop("ours", None)
    medians_s = [one["lost_s"]["median"] for one in summaries.values() if one["lost_s"]]
    bench.finish(
        "backup_compare",
        ours=ours,
        theirs=summaries,
        ratio=ours["lost_s"]["median"] / min(medians_s) if ours and ours["lost_s"] and medians_s else None,
        repeats=args.repeats,
        args=args,
        unit="deaths of machines: share restorable, share of these that is exact, s of work lost",
        interval_s=args.interval_s,
        rsync="rsync -a" if shutil.which("rsync") else "as rsync -a does, in Python: there is no rsync here",
        machine_loss=machine_loss,
        seed=args.seed,
    )
    deaths = courses["ours"].deaths if "ours" in courses else []
    sys.exit(1 if any(death.had_copy and not (death.restored and death.exact) for death in deaths) else 0)


if __name__ == "__main__":
    bench.start(main, measure)

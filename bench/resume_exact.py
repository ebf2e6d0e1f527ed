"""Kills training at random instants and compares what comes out with a run that was never interrupted.

Small runs of all five tasks on synthetic boards, with 0 or 2 loader workers, several models, optimizers, cadences of
saving and augmentations, gradient accumulation across the ends of epochs, and a closing mosaic. For each
configuration one run is left alone. Others of the same configuration, whose cadence and number of workers change from
start to start, are killed with SIGKILL (the whole process group) at instants drawn uniformly over the rest of their
lives, start-up included, resumed, killed again, and in the end left to finish. Then these must equal the undisturbed
run's, bit for bit: every tensor of the last checkpoint (model, EMA, optimizer, gradients that wait) and its state
(all but seconds), every column of `results.csv` (all but `time`), and the weights in `last.pt` and `best.pt`.

The order is fixed by `--seed`; it ends after `--kills` kills that hit a living process, or after `--minutes`.
`--jobs` such campaigns go on at once, each process computing on one thread unless `--threads` says otherwise.

For comparison the same is done to Ultralytics `--theirs` times: killed after half of the epochs, resumed from its
`last.pt`, and the losses compared with its own uninterrupted run.

The last line is JSON: `ours` and `theirs` are the shares of killed runs that came out exact, `kills` how many hit and
in which phase, `failures` what differed. Exit code 1 unless all of ours were exact.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import side_by_side as bench

from steadyolo.events import read_events

MODELS = {
    "detect": ("yolov8n.yaml", "yolo11n.yaml", "yolo26n.yaml"),
    "segment": ("yolov8n-seg.yaml", "yolo11n-seg.yaml"),
    "pose": ("yolov8n-pose.yaml", "yolo11n-pose.yaml"),
    "obb": ("yolov8n-obb.yaml", "yolo26n-obb.yaml"),
    "classify": ("yolov8n-cls.yaml", "yolo11n-cls.yaml"),
}
CADENCES = ("1steps", "2steps", "3steps", "1s", "auto")
WORKERS = (0, 2)
NUM_TRAIN, NUM_VAL, BATCH = 22, 8, 4  # 6 batches an epoch, the last one smaller: windows of 4 and 5 cross its end
STARTUP_SHARE = 0.15  # of the kills come before the run has begun to train
VICTIMS_OF_ONE = 2  # interrupted runs for each undisturbed one
MAX_FAILURES = 10  # then there is something to look at
TIMEOUT_S = 600.0
IDLE_LOOK_S = 0.02

_started: list[subprocess.Popen[bytes]] = []  # none of them may outlive this process
_abandoned = threading.Event()


class ProcessFailed(Exception):
    """A process of ours ended by itself, and not well."""


# -- what is run ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What a run computes. Workers and cadence are not part of it: they must change nothing."""

    name: str
    task: str
    epochs: int
    arguments: dict[str, Any]
    ours: dict[str, str]

    def pairs(self) -> list[str]:
        return [f"{name}={value}" for name, value in {**self.arguments, **self.ours}.items()]


def configurations(seed: int, *, out: Path, threads: int) -> Iterator[Configuration]:
    """An endless list, task by task; the same for the same seed."""
    draws = random.Random(seed)
    data = {
        task: bench.boards(out, task=task, num_train=NUM_TRAIN, num_val=NUM_VAL, size_px=_size_px(task))
        for task in MODELS
    }
    number = 0
    while True:
        for task, models in MODELS.items():
            model = models[0] if draws.random() < 0.6 else draws.choice(models[1:])
            epochs = draws.choice((3, 4, 5))
            arguments = {
                "data": str(data[task]),
                "model": model,
                "task": task,
                "epochs": epochs,
                "imgsz": 64,
                "batch": BATCH,
                "nbs": BATCH * draws.choice((1, 4, 4, 5)),
                "warmup_epochs": draws.choice((0, 0, 1)),
                "optimizer": draws.choice(("SGD", "AdamW", "auto")),
                "close_mosaic": draws.choice((0, 1, 2)),
                "seed": draws.randrange(1000),
                "pretrained": False,
                "plots": False,
                "device": "cpu",
                **_augmentation(task, draws),
            }
            ours = {"cpu.threads": str(threads)}
            if draws.random() < 0.3:
                ours["precision.compute"] = "fp32"
            if draws.random() < 0.3:
                ours["memory.micro_batch"] = "2"
            yield Configuration(name=f"{number:03d}-{task}", task=task, epochs=epochs, arguments=arguments, ours=ours)
            number += 1


def _size_px(task: str) -> tuple[int, int]:
    return (64, 64) if task == "classify" else (160, 128)


def _augmentation(task: str, draws: random.Random) -> dict[str, Any]:
    if task == "classify":
        return {"dropout": draws.choice((0.0, 0.2))}
    return {
        "mixup": draws.choice((0.0, 0.3)),
        "copy_paste": draws.choice((0.0, 0.3)) if task == "segment" else 0.0,
        "multi_scale": draws.choice((0.0, 0.0, 0.5)),
        "cache": draws.choice(("False", "False", "ram")),
    }


# -- one process ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Attempt:
    """One process working on a run, from its start to its end or its kill."""

    process: subprocess.Popen[bytes]
    run: Path
    began_s: float
    num_starts_before: int

    def has_begun(self) -> bool:
        """Whether this process has come to the start of training."""
        return num_starts(self.run) > self.num_starts_before

    def kill(self) -> bool:
        """Kill the whole group. True when that hit a process that was still at work."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        code = self.process.wait()
        _wait_for_group(self.process.pid)
        return code == -signal.SIGKILL

    def phase(self) -> str:
        """In which phase of the run the process was, as far as its files tell."""
        if not self.has_begun():
            return "start-up"
        if any((self.run / "steadyolo" / "checkpoints").glob("*.partial-*")):
            return "writing a checkpoint"
        told = {"run_started", "step_done", "epoch_closed", "run_finished"}
        last = list(read_events(self.run / "steadyolo" / "events.jsonl", told))[-1]
        if last["kind"] == "step_done":
            return "in an epoch"
        return "before the first batch" if last["kind"] == "run_started" else "after an epoch"


def num_starts(run: Path) -> int:
    """How many processes have begun to train this run."""
    return sum(1 for _ in read_events(run / "steadyolo" / "events.jsonl", {"run_started"}))


def num_closed_epochs(run: Path) -> int:
    closed = read_events(run / "steadyolo" / "events.jsonl", {"epoch_closed"})
    return max((int(event["epoch"]) for event in closed), default=0)


def start_attempt(command: list[str], run: Path, *, out: Path, log: Path) -> Attempt:
    if _abandoned.is_set():
        raise ProcessFailed("the campaign was broken off")
    before = num_starts(run)
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=bench.environment(out),
            start_new_session=True,
        )
    _started.append(process)
    return Attempt(process, run, time.monotonic(), before)


def steadyolo(*words: str) -> list[str]:
    return [sys.executable, "-m", "steadyolo.cli.main", *words]


def _wait_for_group(group: int) -> None:
    """Until no process of the group lives: a loader's worker dies a moment after its parent, holding the run's lock."""
    for _ in range(500):
        if not any(_is_alive_in(process, group) for process in psutil.process_iter()):
            return
        time.sleep(IDLE_LOOK_S)


def _is_alive_in(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, psutil.Error):
        return False


# -- what came out -------------------------------------------------------------------------------------------------


def digests(run: Path) -> dict[str, str]:
    """A digest of each thing that must be equal."""
    last = sorted((run / "steadyolo" / "checkpoints").glob("step-????????.????????"))[-1]
    state = json.loads((last / "state.json").read_text(encoding="utf-8"))["state"]
    state.pop("seconds")
    found = {"checkpoint": last.name, "state": _digest(json.dumps(state, sort_keys=True).encode())}
    for file in sorted(last.glob("*.safetensors")):
        found[file.stem] = _tensors_digest(file)
    found["results.csv"] = _digest(json.dumps(rows(run)).encode())
    for name in ("last.pt", "best.pt"):
        found[name] = weights_digest(run / "weights" / name)
    return found


def newest_saved(run: Path) -> str:
    """What kind of moment the newest committed checkpoint was taken at."""
    for folder in sorted((run / "steadyolo" / "checkpoints").glob("step-????????.????????"), reverse=True):
        if (folder / "manifest.json").is_file():
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))["state"]
            if state["pending_batches"]:
                return "gradients waited for their update"
            return "in an epoch" if state["cursor"]["batch"] else "between epochs"
    return "nothing was saved"


def rows(run: Path) -> list[dict[str, str]]:
    """The rows of `results.csv`, without the time."""
    text = (run / "results.csv").read_text(encoding="utf-8")
    return [
        {name: value for name, value in row.items() if name != "time"}
        for row in csv.DictReader(io.StringIO(text), skipinitialspace=True)
    ]


def _tensors_digest(file: Path) -> str:
    """Of all names, types, shapes and bytes, in the order of the names."""
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    digest = hashlib.sha256()
    for name in sorted(set(header) - {"__metadata__"}):
        begin, end = header[name].pop("data_offsets")
        digest.update(json.dumps([name, header[name]], sort_keys=True).encode())
        digest.update(data[start + begin : start + end])
    return digest.hexdigest()


def weights_digest(file: Path) -> str:
    """Of the tensors' bytes in a `.pt` file; its pickle, which also holds a date, is not read."""
    if not file.is_file():
        return "not there"
    digest = hashlib.sha256()
    with zipfile.ZipFile(file) as archive:
        for name in sorted(name for name in archive.namelist() if "/data/" in name):
            digest.update(name.partition("/")[2].encode() + archive.read(name))
    return digest.hexdigest()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# -- the campaign --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Campaign:
    """What has been done so far, by all jobs together."""

    wanted_kills: int
    ends_at_s: float
    num_hit: int = 0
    num_missed: int = 0
    phases: Counter[str] = field(default_factory=Counter)
    hits: Counter[str] = field(default_factory=Counter)  # by run
    tasks: Counter[str] = field(default_factory=Counter)
    workers: Counter[str] = field(default_factory=Counter)
    goes_on_from: Counter[str] = field(default_factory=Counter)
    num_runs: int = 0
    num_exact: int = 0
    failures: list[bench.Json] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def is_over(self) -> bool:
        late = time.monotonic() >= self.ends_at_s
        return self.num_hit >= self.wanted_kills or late or len(self.failures) >= MAX_FAILURES

    def note_kill(self, name: str, attempt: Attempt, configuration: Configuration, workers: int, *, hit: bool) -> None:
        with self.lock:
            if not hit:
                self.num_missed += 1
                return
            self.num_hit += 1
            self.hits[name] += 1
            self.phases[attempt.phase()] += 1
            self.tasks[configuration.task] += 1
            self.workers[f"{workers} workers"] += 1
            self.goes_on_from[newest_saved(attempt.run)] += 1

    def note_run(self, name: str, differing: list[str], error: str = "") -> None:
        """A run is over. One that was never killed is not counted, but its failure is kept."""
        with self.lock:
            num_kills = self.hits[name]
            if num_kills:
                self.num_runs += 1
                self.num_exact += not differing and not error
            if differing or error:
                self.failures.append({"run": name, "kills": num_kills, "differing": differing, "error": error})
            verdict = error.splitlines()[0] if error else f"DIFFERS in {', '.join(differing)}" if differing else "exact"
            bench.say(f"{name}: {num_kills} kills, {verdict} ({self.num_hit} of {self.wanted_kills} kills so far)")


@dataclass(frozen=True, slots=True)
class Life:
    """How long an undisturbed run took: until it began to train, and from then on."""

    startup_s: float
    training_s: float


def live(configuration: Configuration, folder: Path, *, out: Path) -> Life:
    """Make the undisturbed run."""
    run = folder / "undisturbed"
    command = steadyolo("train", *configuration.pairs(), *_place(run), "workers=0", "save.every=auto")
    attempt = start_attempt(command, run, out=out, log=folder / "undisturbed.log")
    began_s = None
    while attempt.process.poll() is None:
        if began_s is None and attempt.has_begun():
            began_s = time.monotonic()
        time.sleep(IDLE_LOOK_S)
    _refuse_failure(attempt, folder / "undisturbed.log")
    ended_s = time.monotonic()
    return Life((began_s or ended_s) - attempt.began_s, ended_s - (began_s or ended_s))


def interrupt(
    configuration: Configuration,
    life: Life,
    run: Path,
    *,
    name: str,
    draws: random.Random,
    campaign: Campaign,
    out: Path,
) -> None:
    """Make a run that is killed a few times and then left to finish."""
    kills = draws.randint(2, 6)
    turn = draws.randrange(len(WORKERS))
    log = run.with_suffix(".log")
    while not _is_finished(run):
        turn += 1
        workers, cadence = WORKERS[turn % len(WORKERS)], draws.choice(CADENCES)
        changing = [f"workers={workers}", f"save.every={cadence}"]
        if (run / "steadyolo" / "spec.json").is_file():
            command = steadyolo("resume", str(run), *changing)
        else:
            command = steadyolo("train", *configuration.pairs(), *_place(run), *changing)
        attempt = start_attempt(command, run, out=out, log=log)
        if campaign.hits[name] < kills and not campaign.is_over():
            _wait_for_the_instant(attempt, life, configuration, draws)
            hit = attempt.kill()
            campaign.note_kill(name, attempt, configuration, workers, hit=hit)
            if hit:
                continue
        _refuse_failure(attempt, log)


def _wait_for_the_instant(attempt: Attempt, life: Life, configuration: Configuration, draws: random.Random) -> None:
    """Sleep until the kill is due, or the process has ended."""
    in_startup = draws.random() < STARTUP_SHARE
    share = draws.random()
    if in_startup:
        _sleep(attempt, share * life.startup_s)
        return
    while attempt.process.poll() is None and not attempt.has_begun():
        time.sleep(IDLE_LOOK_S)
    num_left = max(configuration.epochs - num_closed_epochs(attempt.run), 1)
    _sleep(attempt, share * life.training_s * num_left / configuration.epochs)


def _sleep(attempt: Attempt, seconds: float) -> None:
    ends_s = time.monotonic() + seconds
    while attempt.process.poll() is None and (left_s := ends_s - time.monotonic()) > 0:
        time.sleep(min(left_s, IDLE_LOOK_S))


def _refuse_failure(attempt: Attempt, log: Path) -> None:
    """Wait for the end of a process that nobody kills. Raises: ProcessFailed if that is not a good one."""
    try:
        code = attempt.process.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        attempt.kill()
        raise ProcessFailed(f"it hung for {TIMEOUT_S:.0f} s; see {log}") from None
    if code:
        tail = log.read_text(encoding="utf-8", errors="replace")[-500:]
        raise ProcessFailed(f"exit code {code}; see {log}\n{tail}")


def _is_finished(run: Path) -> bool:
    return (run / "steadyolo" / "finished.json").is_file()


def _place(run: Path) -> list[str]:
    return [f"project={run.parent}", f"name={run.name}", "exist_ok=True"]


def conduct(configuration: Configuration, campaign: Campaign, args: Any, out: Path) -> None:
    """One configuration: its undisturbed run, then the interrupted ones, compared."""
    folder = out / "runs" / configuration.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "command.txt").write_text(" ".join(configuration.pairs()) + "\n", encoding="utf-8")
    name = f"{configuration.name} (undisturbed)"
    num_kept = len(campaign.failures)
    try:
        life = live(configuration, folder, out=out)
        expected = digests(folder / "undisturbed")
        for victim in range(VICTIMS_OF_ONE):
            if campaign.is_over():
                break
            name = f"{configuration.name}-{victim}"
            draws = random.Random(f"{args.seed}-{name}")
            run = folder / f"killed-{victim}"
            interrupt(configuration, life, run, name=name, draws=draws, campaign=campaign, out=out)
            found = digests(run)
            differing = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
            campaign.note_run(name, differing)
    except ProcessFailed as failure:
        campaign.note_run(name, [], error=str(failure))
    if len(campaign.failures) == num_kept:
        shutil.rmtree(folder)  # what went well is not looked at again; the rest is evidence


# -- Ultralytics ---------------------------------------------------------------------------------------------------


def measure(request: bench.Json) -> bench.Json:
    """Child: a run of Ultralytics, resumed where `resume` says."""
    import torch
    from ultralytics import YOLO

    if "resume" in request:
        YOLO(request["resume"]).train(resume=True)
    else:
        YOLO(request["arguments"]["model"]).train(**request["arguments"])
    return {"threads": torch.get_num_threads()}


def theirs(repeats: int, args: Any, out: Path) -> bench.Json:
    """How many runs of Ultralytics come out exact when killed after half of the epochs and resumed."""
    data = bench.boards(args.out, task="detect", num_train=NUM_TRAIN, num_val=NUM_VAL, size_px=_size_px("detect"))
    folder = out / "theirs"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    exact = []
    for repeat in range(repeats):
        arguments = {
            "model": "yolov8n.yaml",
            "data": str(data),
            "epochs": 6,
            "imgsz": 64,
            "batch": BATCH,
            "seed": args.seed + repeat,
            "device": "cpu",
            "pretrained": False,
            "plots": False,
            "exist_ok": True,
            "project": str(folder),
        }
        whole, killed = folder / f"undisturbed-{repeat}", folder / f"killed-{repeat}"
        bench.in_child({"arguments": {**arguments, "name": whole.name}}, out=folder, name=f"{whole.name}-process")
        request = {"arguments": {**arguments, "name": killed.name}}
        command = [sys.executable, sys.argv[0], "--child", json.dumps(request), os.devnull]
        attempt = start_attempt(command, killed, out=out, log=folder / f"{killed.name}.log")
        while attempt.process.poll() is None and _num_rows(killed) < 3:
            time.sleep(IDLE_LOOK_S)
        time.sleep(0.5)  # for last.pt, which is written after the row
        attempt.kill()
        resume = {"resume": str(killed / "weights" / "last.pt")}
        bench.in_child(resume, out=folder, name=f"{killed.name}-resumed")
        exact.append(rows(whole) == rows(killed))
        bench.say(f"Ultralytics, killed and resumed: {'exact' if exact[-1] else 'differs from the undisturbed run'}")
    return {"runs": repeats, "exact": sum(exact)}


def _num_rows(run: Path) -> int:
    try:
        return len(rows(run))
    except OSError:
        return 0


def main() -> None:
    parser = bench.arguments(__doc__, repeats=1)
    parser.add_argument("--kills", type=int, default=50, help="kills that must hit")
    parser.add_argument("--minutes", type=float, default=60.0, help="no further kill after that")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=bench.num_cores(), help="runs at once")
    parser.add_argument("--threads", type=int, default=1, help="threads that each run computes on")
    parser.add_argument("--theirs", type=int, default=2, help="runs of Ultralytics to kill for comparison")
    args = parser.parse_args()
    if args.quick:
        args.kills, args.theirs, args.jobs = min(args.kills, 4), min(args.theirs, 1), 1
    out = args.out / "resume_exact"
    campaign = Campaign(args.kills, time.monotonic() + 60 * args.minutes)
    endless = configurations(args.seed, out=args.out, threads=args.threads)
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = [pool.submit(_conduct_until_over, endless, campaign, args, out) for _ in range(args.jobs)]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            abandon()
            raise
    other = theirs(args.theirs, args, out) if args.theirs else {"runs": 0, "exact": 0}
    ours = campaign.num_exact / campaign.num_runs if campaign.num_runs else None
    bench.finish(
        "resume_exact",
        ours=ours,
        theirs=other["exact"] / other["runs"] if other["runs"] else None,
        ratio=None,  # what is exact has no ratio to what is not
        repeats=campaign.num_runs,
        args=args,
        unit="share of killed and resumed runs that equal the undisturbed run",
        seed=args.seed,
        kills={
            "hit": campaign.num_hit,
            "wanted": args.kills,
            "came_too_late": campaign.num_missed,
            "by_phase": dict(campaign.phases),
            "by_task": dict(campaign.tasks),
            "by_workers": dict(campaign.workers),
            "by_what_was_saved": dict(campaign.goes_on_from),
        },
        runs={"killed": campaign.num_runs, "exact": campaign.num_exact},
        theirs_runs=other,
        failures=campaign.failures,
    )
    sys.exit(1 if campaign.failures or not campaign.num_hit else 0)


def abandon() -> None:
    """Start nothing more, and end what is running: it would not hear of an interrupt by itself."""
    _abandoned.set()
    for process in _started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def _conduct_until_over(endless: Iterator[Configuration], campaign: Campaign, args: Any, out: Path) -> None:
    while not campaign.is_over() and not _abandoned.is_set():
        with campaign.lock:
            configuration = next(endless)
        conduct(configuration, campaign, args, out)


if __name__ == "__main__":
    bench.start(main, measure)

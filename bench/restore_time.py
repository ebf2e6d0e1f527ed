"""How long it takes to be training again on an empty machine, against the same start from the local disk.

`nano`: yolov8n trains on bccd with `store.url` until a few copies are verified in SeaweedFS, and is stopped by SIGTERM.
Then, in alternating order: `store` is `steadyolo resume URL project=EMPTY` on an empty folder, `disk` is
`steadyolo resume FOLDER` on a copy of the run's folder (`allow=takeover`, because the other side has taken the run over
meanwhile). Each is the time from the start of the process to its first `step_done` event, imports, data set and first
batch included; the process is killed then. Both claim the run in the store, as every start does.

`state`: a checkpoint of `--state-mb` of random tensors, committed with `Checkpoints` and uploaded with `RemoteRun`.
`store` is `restore_run` into an empty folder, which ends with the state loaded and verified; `disk` is loading and
verifying it where it was committed.

`transfer`: that checkpoint's copy as `RemoteRun.fetch` brings it (each object verified before it is written, files
synced to the disk), against `bare`: what obstore moves when the same objects are read by as many threads and written to
local files without looking at them, and `bare_synced`, which also syncs them. The goal is 80 % of `bare`. The server
shares cores with the reader here, and there is no network between them: processor time that would disappear behind a
network counts in full.

One process for each figure, alternating order. The last line is JSON: `ours`, `theirs` and `ratio` by part, of medians:
seconds (nano, state) and MB/s (transfer). `peak_mib` is the largest resident size of the process that fetched.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import side_by_side as bench
import store_server

NAME = "run"
TIMEOUT_S = 600.0
LOOK_S = 0.05
SETTLE_S = 4.0
NUM_TENSORS = 64
TRANSFERS = ("fetch", "bare", "bare_synced")
STATES = ("store", "disk")


class Failed(SystemExit):
    """A process of ours did not do what it should; the bench ends."""


# -- a nano model, from the command to the first step --------------------------------------------------------------


def nano(args: Any, url: str, data: Path, out: Path) -> dict[str, list[bench.Json]]:
    """Starts from the store and from the disk, each with its seconds."""
    origin = _trained(args, url, data, out / "origin")
    found: dict[str, list[bench.Json]] = {side: [] for side in STATES}
    place = url.replace("?", f"/{NAME}?", 1)
    for repeat, side in bench.alternating(args.repeats, STATES):
        project = out / f"{side}-{repeat}"
        if side == "store":
            words = ["resume", place, f"project={project}"]
        else:
            shutil.copytree(origin, project / NAME)
            words = ["resume", str(project / NAME), "allow=takeover"]
        found[side].append(_started(words, project / NAME, out))
        shutil.rmtree(project)
        bench.say(f"nano from {side}: first step after {found[side][-1]['first_step_s']:.2f} s")
    return found


def _trained(args: Any, url: str, data: Path, folder: Path) -> Path:
    """The folder of a run that was trained for a moment, copied to the store, and stopped."""
    words = [
        "train",
        f"model={args.model}",
        f"data={data}",
        f"imgsz={args.imgsz}",
        f"batch={args.batch}",
        *("epochs=1000", "plots=False", "pretrained=False", "save.every=3s", f"store.url={url}"),
        *([f"cpu.threads={args.threads}"] if args.threads else []),
        f"project={folder}",
        f"name={NAME}",
    ]
    process, run = _start(words, folder), folder / NAME
    _wait_for(process, run, "copy_verified", 3, folder)
    process.terminate()
    if process.wait(TIMEOUT_S) != 75:
        raise Failed(f"the run to restore ended with {process.returncode}; see {folder}.log")
    return run


def _started(words: list[str], run: Path, out: Path) -> bench.Json:
    """When a start came to its parts, in seconds; then it is killed."""
    began = time.time()
    process = _start([*words, "save.every=10h"], out / f"resume-{run.parent.name}")
    try:
        step = _wait_for(process, run, "step_done", 1, out, since=began)
        begun = _wait_for(process, run, "run_started", 1, out, since=began)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return {"first_step_s": _at(step) - began, "run_started_s": _at(begun) - began}


def _start(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.with_suffix(".log").open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "steadyolo.cli.main", *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=bench.environment(bench.OUT),
            start_new_session=True,
        )


def _wait_for(
    process: subprocess.Popen[bytes], run: Path, kind: str, number: int, log: Path, *, since: float = 0.0
) -> bench.Json:
    """The `number`-th event of this kind since then."""
    from steadyolo.events import read_events

    ends_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < ends_s:
        found = [event for event in read_events(run / "steadyolo" / "events.jsonl", {kind}) if _at(event) >= since]
        if len(found) >= number:
            return found[number - 1]
        if process.poll() is not None:
            break
        time.sleep(LOOK_S)
    process.kill()
    raise Failed(f"no {kind} came (exit code {process.poll()}); see the logs in {log.parent}")


def _at(event: bench.Json) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


# -- a large state -------------------------------------------------------------------------------------------------


def measure(request: bench.Json) -> bench.Json:
    """Child: the seconds of one restore, load or transfer, or the making of what they read."""
    from steadyolo.vault.patience import Patience
    from steadyolo.vault.restore import restore_run

    run, folder = _remote(request["url"]), Path(request["folder"])
    if request["side"] == "make":
        return _make(run, folder, request["state_mb"])
    shutil.rmtree(folder, ignore_errors=True)
    run.owner()  # the connection is there
    if request["side"] in STATES:
        import torch  # noqa: F401  # whoever restores has paid for it anyway
    before_cpu_s, began_s = time.process_time(), time.perf_counter()
    match request["side"]:
        case "fetch":
            run.fetch(run.copies()[-1], folder, num_parallel=request["num_parallel"])
        case "bare" | "bare_synced":
            _bare(run, folder, request["num_parallel"], synced=request["side"] == "bare_synced")
        case "store":
            restored = restore_run({"store": run}, folder, patience=Patience(60.0))
            assert restored.found.snapshot is not None and not restored.found.rejected
            _touch(restored.found.snapshot)
        case "disk":
            _touch(_checkpoints(Path(request["origin"])).newest_verified().snapshot)
    seconds, cpu_s = time.perf_counter() - began_s, time.process_time() - before_cpu_s
    shutil.rmtree(folder, ignore_errors=True)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "peak_mib": peak_mib, "cpu_s": cpu_s}


def _remote(url: str) -> Any:
    from steadyolo.adapters.objects.opening import open_store
    from steadyolo.spec.location import parse_location
    from steadyolo.vault.remote_run import RemoteRun

    return RemoteRun(open_store(parse_location(url)), NAME)


def _checkpoints(folder: Path) -> Any:
    from steadyolo.vault.checkpoints import Checkpoints

    return Checkpoints(folder / "steadyolo" / "checkpoints", writer_id="bench")


def _touch(snapshot: Any) -> None:
    """Read every byte of the state: what is mapped into memory is not loaded before that."""
    from steadyolo.state.host_array import host_array

    for tensors in snapshot.tensors.values():
        for tensor in tensors.values():
            host_array(tensor).sum()


def _make(run: Any, folder: Path, state_mb: int) -> bench.Json:
    """Commit a state of random tensors in `folder` and upload it."""
    import torch

    from steadyolo.state.run_state import RunState
    from steadyolo.state.snapshot import Snapshot, checkpoint_name
    from steadyolo.vault.claim import Claim
    from steadyolo.vault.copy import Copy

    shutil.rmtree(folder, ignore_errors=True)
    generator = torch.Generator().manual_seed(0)
    groups = {"model": NUM_TENSORS // 4, "ema": NUM_TENSORS // 4, "optimizer": NUM_TENSORS // 2}  # as of Adam
    num_values = state_mb * 10**6 // 4 // NUM_TENSORS
    snapshot = Snapshot(
        name=checkpoint_name(step=1, tick=1),
        state=replace(RunState.fresh(), step=1),
        tensors={
            group: {f"tensor-{n}": torch.rand(num_values, generator=generator) for n in range(number)}
            for group, number in groups.items()
        },
        made_from={"spec": {}},
    )
    checkpoints = _checkpoints(folder)
    committed = checkpoints.commit(snapshot, parent=None)
    claim = Claim(token=1, run_id="bench", writer_id="bench", host="bench", since="")
    run.take(claim, over=None)
    began_s = time.perf_counter()
    run.upload(checkpoints.root / committed.name, Copy(1, committed.name), claim=claim)
    upload_s = time.perf_counter() - began_s
    return {"num_bytes": committed.num_bytes, "commit_s": committed.seconds, "upload_s": upload_s}


def _bare(run: Any, folder: Path, num_parallel: int, *, synced: bool) -> None:
    """Move the objects of the newest copy to files, one each, as they come."""
    import obstore

    copy, store = run.copies()[-1], run.store._store()
    keys = [f"{NAME}/steadyolo/checkpoints/{copy.label}/{part.key}" for part in run.manifest(copy).parts]
    folder.mkdir(parents=True)
    lock, files = threading.Lock(), []

    def move(key: str) -> None:
        data = obstore.get(store, key).bytes()
        fd = os.open(folder / Path(key).name, os.O_WRONLY | os.O_CREAT)
        with lock:
            files.append(fd)
        os.write(fd, memoryview(data))

    with ThreadPoolExecutor(num_parallel) as pool:
        for _ in pool.map(move, keys):
            pass
    for fd in files:
        if synced:
            os.fsync(fd)
        os.close(fd)


def large(args: Any, url: str, out: Path) -> tuple[bench.Json, dict[str, list[bench.Json]]]:
    """What was made, and each figure of the large state."""
    request = {"url": url, "folder": str(out / "large"), "state_mb": args.state_mb}
    made = bench.in_child({**request, "side": "make"}, out=out, name="make")
    sides = (*STATES, *TRANSFERS)
    found: dict[str, list[bench.Json]] = {side: [] for side in sides}
    for repeat, side in bench.alternating(args.repeats, sides):
        request = {
            "url": url,
            "side": side,
            "origin": str(out / "large"),
            "folder": str(out / "fetched" / NAME),
            "num_parallel": args.num_parallel,
        }
        time.sleep(SETTLE_S)  # memory that the one before freed goes back to the host, or it would be this one's gain
        found[side].append(bench.in_child(request, out=out, name=f"{side}-{repeat}"))
        bench.say(f"{side}: {made['num_bytes'] / 1e6 / found[side][-1]['seconds']:.0f} MB/s")
    shutil.rmtree(out / "large")
    return made, found


# -- the parent ----------------------------------------------------------------------------------------------------


def main() -> None:
    parser = bench.arguments(__doc__, repeats=5)
    parser.add_argument("--part", choices=("nano", "large", "both"), default="both")
    parser.add_argument("--model", default="yolov8n.yaml")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, help="threads that compute (all cores)")
    parser.add_argument("--state-mb", type=int, default=1000, help="size of the large state")
    parser.add_argument("--num-parallel", type=int, default=8, help="requests at once")
    args = parser.parse_args()
    if args.quick:
        args.imgsz, args.batch, args.threads, args.state_mb, args.repeats = 64, 4, 1, 64, 1
    out = args.out / "restore_time"
    shutil.rmtree(out, ignore_errors=True)
    ours: bench.Json = {}
    theirs: bench.Json = {}
    ratio: bench.Json = {}
    more: bench.Json = {}
    with store_server.store_server(out / "server") as server:
        if args.part != "large":
            starts = nano(args, server.url("restore/nano"), bench.data_set(args.data, args.out), out / "nano")
            _compare("nano", starts["store"], starts["disk"], "first_step_s", ours, theirs, ratio)
            more["nano_starts"] = starts
        if args.part != "nano":
            made, found = large(args, server.url("restore/large"), out / "large-state")
            _compare("state", found["store"], found["disk"], "seconds", ours, theirs, ratio)
            for each in (one for side in TRANSFERS for one in found[side]):
                each["mb_s"] = made["num_bytes"] / 1e6 / each["seconds"]
            _compare("transfer", found["fetch"], found["bare"], "mb_s", ours, theirs, ratio)
            synced = bench.spread([one["mb_s"] for one in found["bare_synced"]])
            more["transfer"] = {
                "bare_synced_mb_s": synced,
                "ratio_to_bare_synced": bench.round_off(ours["transfer"]["median"] / synced["median"]),
                "num_parallel": args.num_parallel,
                "cpu_s": {side: bench.spread([one["cpu_s"] for one in found[side]]) for side in found},
                "peak_mib": {side: bench.spread([one["peak_mib"] for one in found[side]]) for side in found},
            }
            more["large_state"] = made
    bench.finish(
        "restore_time",
        ours=ours,
        theirs=theirs,
        ratio=ratio,
        repeats=args.repeats,
        args=args,
        unit="s until training (nano) or loaded (state), from a store against from the disk; MB/s (transfer)",
        model=args.model,
        imgsz=args.imgsz,
        batch=args.batch,
        **more,
    )


def _compare(
    part: str,
    our: list[bench.Json],
    their: list[bench.Json],
    figure: str,
    ours: bench.Json,
    theirs: bench.Json,
    ratio: bench.Json,
) -> None:
    ours[part] = bench.spread([one[figure] for one in our])
    theirs[part] = bench.spread([one[figure] for one in their])
    ratio[part] = bench.round_off(ours[part]["median"] / theirs[part]["median"])


if __name__ == "__main__":
    bench.start(main, measure)

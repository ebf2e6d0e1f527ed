"""From the start of a process to the first correct boxes, and the first requests after ready and after a rest.

Sides, each in fresh processes, alternating: `theirs` is `YOLO(pt)(image)`; `library` is `Detector(model)(image)`;
`http` is `steadyolo serve`, asked every 5 ms until it answers with boxes. Correct means: the same objects as the source
model. `--starts` servers are also asked once as soon as they say that they are ready and 1,000 times after that,
`--rests` of them once more after 60 s without a request; and as often without warm-up, which has to be seen.

The last line is JSON: seconds, `ratio` is theirs / library and theirs / http, medians.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import serving
import side_by_side as bench

SIDES = ("theirs", "library", "http")
REST_S = 60.0
THEIRS = """
import json, sys
from ultralytics import YOLO
found = YOLO(sys.argv[1])(sys.argv[2], imgsz=int(sys.argv[3]), verbose=False)[0].summary()
print(json.dumps(found), flush=True)
"""
LIBRARY = """
import json, sys
import steadyolo
print(json.dumps(steadyolo.Detector(sys.argv[1])(sys.argv[2]).summary()), flush=True)
"""


def main() -> None:
    """Parent."""
    parser = bench.arguments(__doc__, repeats=20)
    parser.add_argument("--weights", type=Path, help="a .pt (else one is trained in some minutes)")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--starts", type=int, default=5, help="servers whose first requests after ready are timed")
    parser.add_argument("--rests", type=int, default=2, help="of them, how many are left alone for a minute")
    args = parser.parse_args()
    if args.quick:
        args.repeats, args.starts, args.rests = 2, 1, 0
    out = args.out / "cold_start"
    subject = serving.subject(args, out)
    image = subject.images[0]
    for side in SIDES:  # once uncounted: files are in memory, compiled graphs in their cache
        _first_boxes(side, subject, image, out)
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    wrong = dict.fromkeys(SIDES, 0)
    truth: list[bench.Json] | None = None
    for repeat, side in bench.alternating(args.repeats, SIDES):
        took, found = _first_boxes(side, subject, image, out)
        if side == "theirs" and truth is None:
            truth = found
        wrong[side] += truth is not None and not serving.same_boxes(found, truth)
        seconds[side].append(took)
        bench.say(f"{repeat:2} {side:8} {took:.3f} s, {len(found)} objects")
    after = {
        kind: [_after_ready(subject, out, rest=index < args.rests, warm=kind == "warm") for index in range(args.starts)]
        for kind in ("warm", "no_warmup")
    }
    spreads = {side: bench.spread(values) for side, values in seconds.items()}
    theirs = spreads["theirs"]["median"]
    bench.finish(
        "cold_start",
        ours={"library_s": spreads["library"], "http_s": spreads["http"], "objects": len(truth or [])},
        theirs={"seconds": spreads["theirs"]},
        ratio={side: bench.round_off(theirs / spreads[side]["median"]) for side in ("library", "http")},
        repeats=args.repeats,
        args=args,
        wrong=wrong,
        after_ready=after,
        first_over_median={kind: max(one["first_over_median"] for one in runs) for kind, runs in after.items()},
    )


def _first_boxes(side: str, subject: serving.Subject, image: Path, out: Path) -> tuple[float, list[bench.Json]]:
    """Seconds from the start of a process to the first objects that were found, and these."""
    if side == "http":
        return _first_over_http(subject, image, out)
    code, model = (THEIRS, subject.weights) if side == "theirs" else (LIBRARY, subject.served)
    command = [sys.executable, "-c", code, str(model), str(image), str(subject.side_px)]
    began = time.perf_counter()
    with subprocess.Popen(command, env=bench.environment(out), stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline() if process.stdout else ""
        took = time.perf_counter() - began  # how long the process takes to end keeps nobody waiting
    if process.returncode:
        raise SystemExit(f"{side} failed with exit code {process.returncode}")
    return took, serving.summary_in(line)


def _first_over_http(subject: serving.Subject, image: Path, out: Path) -> tuple[float, list[bench.Json]]:
    port, body = serving.free_port(), image.read_bytes()
    client = serving.Client(port, f"/v1/models/{subject.name}/detect")
    began = time.perf_counter()
    with serving.server(serving.steadyolo_serve(subject, port), out, "http") as process:
        answer = serving.wait_for_answer(client, body, process)
        took = time.perf_counter() - began
    return took, json.loads(answer)["objects"]


def _after_ready(subject: serving.Subject, out: Path, *, rest: bool, warm: bool) -> bench.Json:
    """The first request after ready against the thousand after it; then the first after a rest."""
    port, bodies = serving.free_port(), [path.read_bytes() for path in subject.images]
    path, more = f"/v1/models/{subject.name}/detect", () if warm else ("--no-warmup",)
    client = serving.Client(port, path)
    with serving.server(serving.steadyolo_serve(subject, port, *more), out, "after") as process:
        serving.wait_until_ready(port, process)
        first = _timed(client, bodies[0])
        later = [_timed(client, bodies[number % len(bodies)]) for number in range(1000)]
        median = statistics.median(later)
        told = {
            "first_ms": bench.round_off(1000 * first, 4),
            "median_ms": bench.round_off(1000 * median, 4),
            "p99_ms": bench.round_off(1000 * bench.percentile(later, 0.99), 4),
            "first_over_median": bench.round_off(first / median),
            "p99_over_median": bench.round_off(bench.percentile(later, 0.99) / median),
        }
        if rest:
            client.close()
            time.sleep(REST_S)
            client.connect()  # who comes back after a minute makes a new connection, which is not what is timed
            told["after_rest_over_median"] = bench.round_off(_timed(client, bodies[1]) / median)
        client.close()
    bench.say(f"after ready, {'warm' if warm else 'no warm-up'}: {told}")
    return told


def _timed(client: serving.Client, body: bytes) -> float:
    took, status = client.timed(body)
    if status != 200:
        raise SystemExit(f"answered {status}")
    return took


if __name__ == "__main__":
    main()

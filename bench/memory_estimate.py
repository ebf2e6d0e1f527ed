"""Memory of a GPU: predicted without one, against what public training logs printed.

    bench/memory_estimate.py [FILE.csv]

A row is a log of plain Ultralytics: model, task, batch, imgsz, amp, nc, and what `GPU_mem` said at the end of the first
epoch, in GiB (`gpu_mem_gib`). Optimizer and versions of ultralytics and torch are used where they are told. What is
missing is taken to be Ultralytics' default, and `nc` to be NUM_CLASSES. A row whose model cannot be built, or that
lacks its figure, is counted (`num_not_predicted`) and left out. A row takes seconds; there is a process for each core.

`ours` is the estimate of `steadyolo plan`: a traced step, served by a simulated allocator. As the logs are
upstream's, what its runs do and ours do not is simulated with it: targets are assigned whole, for numbers of boxes
that change from batch to batch; mask losses keep all that they make; gradients are added at once; mixed precision is
checked first. A log does not tell how many boxes its pictures have, which for small models matters most. `theirs` are
two that are commonly used: `rule_of_thumb`, parameters x 12 bytes and the batch of pictures; and `bare_trace`, the
tensors of forward pass, backward pass and optimizer under fake tensors.

Of each: `median_error` and `p90_error`, relative; `under_share`, rows predicted more than 10 % too low. `ratio` is the
median error of ours / that of the better one of theirs. `--calibrate` adds `leave_one_out`: how ours does on rows that
have no part in choosing MOST_BOXES and the margin.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import side_by_side as bench

LOGS = bench.REPO / "bench" / "data" / "gpu_memory_public_logs.csv"
MIB, GIB = 1 << 20, 1 << 30
Row = Mapping[str, str]
Version = tuple[int, ...]

NUM_CLASSES = 10
OPTIMIZERS = {"SGD", "Adam", "AdamW", "RMSProp"}  # what auto chooses otherwise holds as much as AdamW
# Calibrated: boxes in the fullest mosaic of an epoch; on average there are a fifth of them.
MOST_BOXES = 80
# Calibrated on classifiers: what the check of mixed precision leaves in the cache, in releases before 8.1 and since.
CHECK_BYTES = {"before": 480 * MIB, "since": 320 * MIB}

CUBLAS_BYTES_BEFORE_2 = (
    8320 * 1024,
) * 2  # torch 1 cannot train reproducibly as upstream asks, so cuBLAS has its default
NUM_STEPS = 8  # by then fragments have settled
NUM_ORDERS = 5  # of batches: fragments depend on it by some percent
BOXES_CHANGE = 0.5  # share of the boxes that the emptiest batch lacks
BOXES_TRIED = (50, 60, 70, 80, 90, 100)
MARGINS_TRIED = [0.01 * i for i in range(13)]

# The dense tensors of upstream's assigner in order: taken (a name, and bytes for a pair of a box and an anchor), and
# given back (the name alone). Anchors in boxes; metric; best anchors; conflicts; scores.
ASSIGNER = (
    "a8 b8 c16 a b d4 c e4 f1 e g4 h4 i2 i j4 k4 l4 j k h f m1 n4 m o4 p4 o n d q1 r4 s4 q r p t4 u4 t v4 u v g l s"
)
# The first releases computed the overlap of all pairs, not only of anchors in boxes.
ASSIGNER_OF_FIRST = "w4 a4 b4 c4 d4 a b e4 f4 g4 c d h4 i4 j4 k4 e f l4 m4 g h i j k l m w " + ASSIGNER


# -- rows ----------------------------------------------------------------------------------------------------------


def version(text: str | None) -> Version:
    """Three numbers; of what is not told, new ones."""
    numbers = [int(digits) for digits in re.findall(r"\d+", text or "")[:3]]
    return tuple([*numbers, 0, 0][:3]) if numbers else (99, 0, 0)


def model_name(text: str) -> str:
    """The yaml of a model as logs call it: yolov5su.pt, yolov11n, runs/yolov8n-seg.pt."""
    name = re.sub(r"\.(pt|yaml)$", "", Path(text.strip().replace("\\", "/")).name.lower())
    name = re.sub(r"^yolov(11|12|26)", r"yolo\1", name)
    return re.sub(r"^(yolov[35].*)u$", r"\1", name) + ".yaml"


def task_of(row: Row) -> str:
    ends = {"-seg": "segment", "-cls": "classify", "-pose": "pose", "-obb": "obb"}
    by_name = (task for end, task in ends.items() if end in row["model"])
    return row.get("task") or next(by_name, "detect")


def number(row: Row, name: str, default: int) -> int:
    return int(float(row.get(name) or default))


def workload(row: Row) -> Any:
    from steadyolo.plan.fit import Fit
    from steadyolo.plan.memory import Workload

    batch = number(row, "batch", 16)
    optimizer = re.sub(r"auto\((\w+)\)", r"\1", row.get("optimizer") or "auto")
    return Workload(
        model=model_name(row["model"]),
        task=task_of(row),
        imgsz=-(-number(row, "imgsz", 640) // 32) * 32,
        fit=Fit(num_images=batch),
        compute="fp32" if (row.get("amp") or "True").lower() in {"false", "0", "0.0", "no"} else "fp16",
        device="cuda",
        optimizer=optimizer if optimizer in OPTIMIZERS else "AdamW",
        most_boxes=MOST_BOXES,
        mean_boxes=MOST_BOXES / 5,
        num_classes=number(row, "nc", NUM_CLASSES),
        accumulates=batch <= 25,  # warm-up has gone from 1 to 2 passes a step before the first epoch ends
    )


# -- ours: a trace, and what upstream's runs do besides ------------------------------------------------------------


def as_logged(trace: Any, row: Row, most_boxes: int) -> int:
    """What `memory_reserved` says after some batches of an upstream run, in bytes; the mean over orders of batches."""
    from steadyolo.plan.cuda_memory import CUBLAS_BYTES, reserved_bytes

    upstream, torch = version(row.get("ultralytics_version")), version(row.get("torch"))
    pattern = ASSIGNER_OF_FIRST if upstream < (8, 0, 50) else ASSIGNER
    anchors = sum((trace.workload.imgsz // stride) ** 2 for stride in (8, 16, 32))
    checked = trace.workload.compute == "fp16" and upstream >= (8, 0, 60)
    reserved = []
    for start in range(NUM_ORDERS):
        steps = []
        for i in range(start, start + NUM_STEPS):
            boxes = max(round(most_boxes * (1 - BOXES_CHANGE * (i * 0.618 % 1))), 1)
            pairs = trace.workload.fit.num_images * anchors * boxes
            steps.append(list(_upstreams(trace.training, pattern, pairs, accumulates=trace.workload.accumulates)))
        reserved.append(
            reserved_bytes(
                steps,
                cublas_bytes=CUBLAS_BYTES if torch >= (2, 0, 0) else CUBLAS_BYTES_BEFORE_2,
                given_back=[CHECK_BYTES["before" if upstream < (8, 1, 0) else "since"]] if checked else [],
            )
        )
    return round(statistics.mean(reserved))


def _upstreams(moves: Sequence[Any], pattern: str, pairs: int, *, accumulates: bool) -> Iterator[Any]:
    """`moves` as upstream makes them.

    Those of matching boxes and anchors are a dense assigner's (what lasts of them stays); and a gradient that comes to
    others is added at once, where ours wait until the pass is over.
    """
    from steadyolo.plan.trace import BEFORE, MATCHING

    matching = Counter(move.storage for move in moves if move.moment == MATCHING)
    names = itertools.count(max(move.storage for move in moves) + 1)
    added: set[int] = set()
    previous = ""
    for move in moves:
        if move.moment == MATCHING != previous:
            held: dict[str, Any] = {}
            for token in pattern.split():
                name, num_bytes = token[0], int(token[1:] or 0) * pairs
                if num_bytes:
                    held[name] = replace(move, storage=next(names), num_bytes=num_bytes)
                    yield held[name]
                else:
                    yield replace(held[name], num_bytes=-held.pop(name).num_bytes)
        previous = move.moment
        if (move.moment == MATCHING and matching[move.storage] > 1) or move.storage in added:
            continue
        yield move
        if accumulates and move.kind == "gradients" and move.moment != BEFORE and move.num_bytes > 0:
            yield replace(move, num_bytes=-move.num_bytes)
            added.add(move.storage)


# -- theirs --------------------------------------------------------------------------------------------------------


def bare_trace(asked: Any, model: Any) -> int:
    """Bytes of the tensors of a second step, network and optimizer only, by the storages that operators make."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from steadyolo.plan.trace import peak_of
    from steadyolo.train.scale import Scale, no_workspace

    fakes, scale = FakeTensorMode(allow_non_fake_inputs=True), Scale(no_workspace)
    with fakes, scale:
        for part in model.modules():
            for name, value in part._parameters.items():
                if value is not None:
                    fake = torch.empty(value.shape, dtype=value.dtype)
                    part._parameters[name] = torch.nn.Parameter(fake, requires_grad=value.requires_grad)
            for name, value in part._buffers.items():
                if value is not None:
                    part._buffers[name] = torch.empty(value.shape, dtype=value.dtype)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
        for _ in range(2):
            pictures = torch.empty(asked.fit.num_images, 3, asked.imgsz, asked.imgsz)
            with torch.autocast("cpu", dtype=torch.float16, enabled=asked.compute != "fp32"):
                found = torch.utils._pytree.tree_leaves(model(pictures))
            sum(x.float().sum() for x in found if isinstance(x, torch.Tensor) and x.requires_grad).backward()
            optimizer.step()
            optimizer.zero_grad()
        return peak_of(scale.moves()).num_bytes


# -- all -----------------------------------------------------------------------------------------------------------


def predict(row: Row, boxes_tried: Sequence[int]) -> bench.Json:
    """Of one row, in GiB: the rule, the bare trace, and ours for each number of boxes; or why there is none."""
    from steadyolo.adapters.ultralytics.stand_ins import build_model
    from steadyolo.adapters.ultralytics.tracing import trace
    from steadyolo.adapters.ultralytics.workarounds import quiet_upstream

    began_s = time.perf_counter()
    try:
        true_gib = float(row["gpu_mem_gib"])
        asked = workload(row)
        with patch("steadyolo.adapters.ultralytics.criterion.bound_mask_losses", lambda criterion: None):
            traced = trace(asked)  # with upstream's mask loss
        ours = {str(boxes): as_logged(traced, row, boxes) / GIB for boxes in boxes_tried}
        with quiet_upstream():
            model = build_model(asked.model, asked.task, asked.num_classes)
            parameters = sum(p.numel() for p in model.parameters())
            pictures = asked.fit.num_images * 3 * asked.imgsz**2 * 4
            bare = bare_trace(asked, model)
    except Exception as error:  # noqa: BLE001  # one bad row must not keep the others from being predicted
        return {"row": dict(row), "error": f"{type(error).__name__}: {error}".splitlines()[0]}
    return {
        "row": dict(row),
        "true_gib": true_gib,
        "ours_gib": ours,
        "rule_of_thumb_gib": (12 * parameters + pictures) / GIB,
        "bare_trace_gib": bare / GIB,
        "seconds": time.perf_counter() - began_s,
    }


def figures(errors: Sequence[float]) -> bench.Json:
    """Of signed relative errors."""
    sizes = [abs(error) for error in errors]
    return {
        "median_error": bench.round_off(statistics.median(sizes)),
        "p90_error": bench.round_off(bench.percentile(sizes, 0.9)),
        "under_share": bench.round_off(sum(error < -0.10 for error in errors) / len(errors)),
    }


def errors_of(rows: Sequence[bench.Json], boxes: int, margin: float) -> list[float]:
    return [row["ours_gib"][str(boxes)] * (1 + margin) / row["true_gib"] - 1 for row in rows]


def chosen(rows: Sequence[bench.Json]) -> tuple[int, float]:
    """Boxes and margin with the lowest errors, in shares of what is aimed at; predicting too little counts double."""

    def cost(choice: tuple[int, float]) -> float:
        found = figures(errors_of(rows, *choice))
        too_low = max(found["under_share"] - 0.05, 0) / 0.05
        return float(found["median_error"] / 0.10 + found["p90_error"] / 0.25 + 2 * too_low)

    return min(itertools.product(BOXES_TRIED, MARGINS_TRIED), key=cost)


def leave_one_out(rows: Sequence[bench.Json]) -> bench.Json:
    choices = [chosen([*rows[:i], *rows[i + 1 :]]) for i in range(len(rows))]
    errors = [errors_of([row], *choice)[0] for row, choice in zip(rows, choices, strict=True)]
    counts = Counter(f"{boxes} boxes, margin {margin:.2f}" for boxes, margin in choices)
    return {**figures(errors), "chosen": dict(counts.most_common()), "of_all": chosen(rows)}


def main() -> None:
    parser = bench.arguments(__doc__, repeats=1)
    parser.add_argument("logs", nargs="?", type=Path, default=LOGS, metavar="FILE.csv")
    parser.add_argument("--calibrate", action="store_true", help="choose MOST_BOXES and the margin, leaving one out")
    args = parser.parse_args()
    with args.logs.open(newline="", encoding="utf-8-sig") as file:
        rows = [{(name or "").strip(): (value or "") for name, value in row.items()} for row in csv.DictReader(file)]
    if args.quick:
        rows = rows[3:5]
    from steadyolo.plan.cuda_memory import MARGIN_SHARE

    boxes = BOXES_TRIED if args.calibrate else (MOST_BOXES,)
    answers = []
    with contextlib.closing(_answers(rows, boxes)) as coming:
        for answer in coming:
            answers.append(answer)
            bench.say(_line(answer, MARGIN_SHARE))
    done = [answer for answer in answers if "error" not in answer]
    if not done:
        raise SystemExit(f"none of the {len(rows)} rows could be predicted")
    ours = figures(errors_of(done, MOST_BOXES, MARGIN_SHARE))
    theirs = {
        name: figures([answer[f"{name}_gib"] / answer["true_gib"] - 1 for answer in done])
        for name in ("rule_of_thumb", "bare_trace")
    }
    bench.finish(
        "memory_estimate",
        ours=ours,
        theirs=theirs,
        ratio=ours["median_error"] / min(side["median_error"] for side in theirs.values()),
        repeats=args.repeats,
        args=args,
        unit="relative error",
        num_rows=len(rows),
        num_not_predicted=len(rows) - len(done),
        median_s=bench.round_off(statistics.median(answer["seconds"] for answer in done)),
        leave_one_out=leave_one_out(done) if args.calibrate else None,
        rows=answers,
    )


def _answers(rows: Sequence[Row], boxes: Sequence[int]) -> Iterator[bench.Json]:
    with ProcessPoolExecutor(bench.num_cores(), mp_context=get_context("spawn")) as pool:
        yield from pool.map(predict, rows, itertools.repeat(boxes))


def _line(answer: bench.Json, margin: float) -> str:
    row = answer["row"]
    what = f"{row.get('model')} {row.get('task')} batch {row.get('batch')} at {row.get('imgsz')}"
    if "error" in answer:
        return f"{what}: not predicted: {answer['error']}"
    ours = answer["ours_gib"][str(MOST_BOXES)] * (1 + margin)
    return f"{what}: {ours:.2f} GiB predicted, {answer['true_gib']:.2f} printed ({ours / answer['true_gib'] - 1:+.0%})"


if __name__ == "__main__":
    main()

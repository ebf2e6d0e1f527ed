"""Peak of tensor bytes on a CPU: predicted from a trace without memory, against what torch's profiler counts.

Random configurations over models, tasks, sizes, batches and precisions. Each is trained for real in a process of its
own, on random pictures and labels: two steps of the real step, the second of which is measured, and a pass of
validation. `theirs` is the bare trace that is in use elsewhere: the network's forward and backward pass under fake
tensors, without loss, labels, EMA and what kernels take inside themselves.

The last line is JSON: `median_error` and `worst_error` are shares of the measured peak.
"""

from __future__ import annotations

import gc
import random
import statistics
from collections.abc import Iterator
from typing import Any

import side_by_side as bench

OF_TASK = {
    "detect": "v5n v5s v8n v8s v9t v10n 11n 11s 12n 12s 26n 26s",
    "segment": "v8n v8s 11n 26n",
    "pose": "v8n 11n 11s 26n",
    "obb": "v8n 11n 26n 26s",
    "classify": "v8n v8s 11n 26n",
}
SUFFIXES = {"detect": "", "segment": "-seg", "pose": "-pose", "obb": "-obb", "classify": "-cls"}
MOST_PIXELS = 8 * 640**2  # of a batch: fits 6 GB and a minute


def configurations(count: int, seed: int) -> Iterator[bench.Json]:
    """Random ones, the same for the same seed."""
    rng = random.Random(seed)
    while count:
        task = rng.choices(list(OF_TASK), weights=[5, 2, 1, 1, 1])[0]
        side_px = 32 * rng.randint(2, 20)
        batch = rng.choice([1, 2, 3, 4, 6, 8, 12, 16])
        most = rng.choice([1, 3, 8, 20, 60])
        model = rng.choice(OF_TASK[task].split())
        if batch * side_px**2 > MOST_PIXELS * (1 if model[-1] == "n" else 0.5):
            continue
        count -= 1
        yield {
            "model": f"yolo{model}{SUFFIXES[task]}.yaml",
            "task": task,
            "imgsz": side_px,
            "batch": batch,
            "compute": rng.choice(["fp32", "bf16"]),
            "optimizer": rng.choice(["SGD", "AdamW", "MuSGD"]),
            "most_boxes": most,
            "num_classes": rng.choice([1, 3, 20, 80]),
            "seed": rng.randrange(2**31),
        }


def measure(request: bench.Json) -> bench.Json:
    """Child: one configuration, predicted in both ways and for real."""
    return {"predicted": _predicted(request), "bare": _bare(request), "real": _real(request)}


def labels_of(request: bench.Json) -> Any:
    """Random labels: the first picture has the most boxes, others up to as many."""
    import torch

    draw = torch.Generator().manual_seed(request["seed"])
    counts = torch.randint(0, request["most_boxes"] + 1, (request["batch"],), generator=draw)
    counts[0] = request["most_boxes"]
    owner = torch.arange(request["batch"]).repeat_interleave(counts)
    total = len(owner)
    sides = 0.05 + 0.25 * torch.rand(total, 2, generator=draw)
    middles = sides / 2 + (1 - sides) * torch.rand(total, 2, generator=draw)
    task, side = request["task"], request["imgsz"] // 4
    if task == "classify":
        return {"cls": torch.randint(0, request["num_classes"], (request["batch"],), generator=draw)}
    labels = {
        "batch_idx": owner.float(),
        "cls": torch.randint(0, request["num_classes"], (total, 1), generator=draw).float(),
        "bboxes": torch.cat([middles, sides], 1),
    }
    if task == "obb":
        labels["bboxes"] = torch.cat([labels["bboxes"], torch.rand(total, 1, generator=draw)], 1)
    if task == "pose":  # within the objects, as on a person
        points = middles[:, None] + sides[:, None] * (torch.rand(total, 17, 2, generator=draw) - 0.5)
        labels["keypoints"] = torch.cat([points, torch.full((total, 17, 1), 2.0)], 2)
    if task == "segment":
        labels["masks"] = torch.zeros(request["batch"], side, side, dtype=torch.uint8)
        labels["sem_masks"] = torch.zeros(request["batch"], side, side)
        within = torch.arange(total) - (counts.cumsum(0) - counts)[owner]
        for number, image, (x, y), (w, h) in zip(within, owner, middles * side, sides * side, strict=True):
            mask = labels["masks"][image]
            mask[int(y - h / 2) : int(y + h / 2) + 1, int(x - w / 2) : int(x + w / 2) + 1] = number + 1
    return labels


def _workload(request: bench.Json) -> Any:
    from steadyolo.plan.fit import Fit
    from steadyolo.plan.memory import Workload

    labels = labels_of(request)
    return Workload(
        model=request["model"],
        task=request["task"],
        imgsz=request["imgsz"],
        fit=Fit(num_images=request["batch"], num_recomputed=request.get("num_recomputed", 0)),
        compute=request["compute"],
        device="cpu",
        optimizer=request["optimizer"],
        num_classes=request["num_classes"],
        most_boxes=request["most_boxes"],
        mean_boxes=len(labels["cls"]) / request["batch"],
    )


def _predicted(request: bench.Json) -> bench.Json:
    import time

    from steadyolo.adapters.ultralytics.tracing import trace
    from steadyolo.plan.trace import cpu_estimate

    workload = _workload(request)
    start_s = time.perf_counter()
    peak = cpu_estimate(trace(workload)).training
    seconds = time.perf_counter() - start_s
    return {"bytes": peak.num_bytes, "moment": peak.moment, "by_kind": dict(peak.by_kind), "seconds": seconds}


def _bare(request: bench.Json) -> bench.Json:
    """The trace that is in use elsewhere: forward, backward and update of the network alone."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from steadyolo.adapters.ultralytics.stand_ins import build_model
    from steadyolo.plan.trace import peak_of
    from steadyolo.train.scale import Scale, no_workspace

    model = build_model(request["model"], request["task"], request["num_classes"])
    shape = (request["batch"], 3, request["imgsz"], request["imgsz"])
    cast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=request["compute"] == "bf16")
    scale = Scale(no_workspace)
    with FakeTensorMode(allow_non_fake_inputs=True) as fakes, scale:
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    fake = fakes.from_tensor(parameter.detach())
                    module._parameters[name] = torch.nn.Parameter(fake, requires_grad=parameter.requires_grad)
        scale.name(model.parameters(), "weights")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        for _ in range(2):
            with cast:
                preds = model(torch.empty(shape))
            loss = torch.stack([value.float().sum() for value in _tensors(preds) if value.requires_grad]).sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return {"bytes": peak_of(scale.moves()).num_bytes}


def _tensors(tree: Any) -> list[Any]:
    from torch.utils._pytree import tree_leaves

    return [value for value in tree_leaves(tree) if hasattr(value, "requires_grad")]


def _real(request: bench.Json) -> bench.Json:
    import torch

    torch.manual_seed(request["seed"])
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step = prepared(request)
        step()
        gc.collect()
        with torch.profiler.record_function("the measured step"):
            step()
    return {"bytes": peak_bytes(profile, "the measured step")}


def prepared(request: bench.Json) -> Any:
    """A function that does one training step for real, as a run does it."""
    import torch
    from ultralytics.engine.trainer import BaseTrainer
    from ultralytics.utils.torch_utils import ModelEMA

    from steadyolo.adapters.ultralytics.criterion import Criterion
    from steadyolo.adapters.ultralytics.optimizers import fused
    from steadyolo.adapters.ultralytics.stand_ins import build_model
    from steadyolo.train.precision import Precision
    from steadyolo.train.recompute import Recompute
    from steadyolo.train.step import Stepper

    model = build_model(request["model"], request["task"], request["num_classes"])
    model = model.to(memory_format=torch.channels_last)
    ema = ModelEMA(model)
    Recompute(model).set(request.get("num_recomputed", 0))
    stepper = Stepper(
        model,
        fused(BaseTrainer.build_optimizer(None, model, name=request["optimizer"])),
        criterion=Criterion(model),
        split=lambda batch: [batch],
        precision=Precision(request["compute"], channels_last=True),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        branch_of=lambda name: "one2one" if ".one2one_" in name else "main",
    )

    def step() -> None:
        side_px = request["imgsz"]
        pictures = torch.randint(0, 256, (request["batch"], 3, side_px, side_px), dtype=torch.uint8)
        batch = {**labels_of(request), "img": pictures.contiguous(memory_format=torch.channels_last)}
        del pictures
        batch["img"] = batch["img"].float() / 255
        stepper.accumulate(batch)
        stepper.update()
        ema.update(model)

    return step


def peak_bytes(profile: Any, during: str) -> int:
    """The most bytes of tensors that were there while `during` lasted."""
    events = _flat(profile.profiler.kineto_results.experimental_event_tree())
    span = next(event for event in events if event.name == during)
    moves = [event for event in events if type(event.extra_fields).__name__ == "_ExtraFields_Allocation"]
    first = min(moves, key=lambda event: event.start_time_ns).extra_fields
    before = first.total_allocated - first.alloc_size  # of an earlier profile of the same process
    inside = (event for event in moves if span.start_time_ns <= event.start_time_ns <= span.end_time_ns)
    return max(event.extra_fields.total_allocated for event in inside) - before


def _flat(events: Any) -> list[Any]:
    found, stack = [], list(events)
    while stack:
        event = stack.pop()
        found.append(event)
        stack += event.children
    return found


def main() -> None:
    parser = bench.arguments(__doc__, repeats=1)
    parser.add_argument("--count", type=int, default=40, help="configurations")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of configurations")
    args = parser.parse_args()
    if args.quick:
        args.count = 4
    out = args.out / "memory_truth"
    cases = []
    for number, request in enumerate(configurations(args.count, args.seed)):
        answers = bench.in_child(request, out=out, name=f"{number:02}")
        measured = answers["real"]["bytes"]
        errors = {side: answers[side]["bytes"] / measured - 1 for side in ("predicted", "bare")}
        cases.append({**request, "measured_mib": bench.round_off(measured / 2**20), **errors, **_facts(answers)})
        words = " ".join(
            str(request[name]) for name in ("model", "batch", "imgsz", "compute", "optimizer", "most_boxes")
        )
        found = f"{errors['predicted']:+.2%}, bare {errors['bare']:+.1%}"
        bench.say(f"{number:02} {words}: {measured / 2**20:.0f} MiB, {found}")
    sides = {name: _summary([case[side] for case in cases]) for name, side in _SIDES.items()}
    bench.finish(
        "memory_truth",
        ours=sides["ours"],
        theirs=sides["theirs"],
        ratio=sides["ours"]["median_error"] / max(sides["theirs"]["median_error"], 1e-9),
        repeats=args.repeats,
        args=args,
        unit="share of the measured peak",
        cases=cases,
    )


_SIDES = {"ours": "predicted", "theirs": "bare"}


def _facts(answers: bench.Json) -> bench.Json:
    return {"moment": answers["predicted"]["moment"], "trace_s": bench.round_off(answers["predicted"]["seconds"])}


def _summary(errors: list[float]) -> bench.Json:
    sizes = [abs(error) for error in errors]
    return {
        "median_error": bench.round_off(statistics.median(sizes)),
        "p90_error": bench.round_off(bench.percentile(sizes, 0.9)),
        "worst_error": bench.round_off(max(sizes)),
        "under_share": sum(error < -0.1 for error in errors) / len(errors),
    }


if __name__ == "__main__":
    bench.start(main, measure)

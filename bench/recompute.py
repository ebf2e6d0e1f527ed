"""Recomputing a network's first layers: memory that it saves and time that it costs, against the plain network.

Each measurement is a process of its own that takes whole training steps (forward, loss, backward, SGD with momentum)
on the same random images and boxes: one that is not counted, the timed ones, and one under torch's profiler, whose
highest sum of tensor bytes is the memory. Both sides are ours; `theirs` is the plain network, as Ultralytics computes
it. They alternate. `same_bits` says that both ended with the same parameters and buffers.

The last line is JSON: `ours`, `theirs` and `ratio` (ours / theirs, of the memory) are those of the most layers;
`cases` has all of them, each with `time_ratio`, and `forward_share`, how much of a plain step its forward pass takes:
recomputing everything may cost that much.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from pathlib import Path
from typing import Any

import side_by_side as bench

SIDES = ("ours", "theirs")
NUM_BOXES = 20


def measure(request: bench.Json) -> bench.Json:
    """Child: memory and time of steps with `layers` recomputed (0: none)."""
    import torch
    from ultralytics.nn.tasks import DetectionModel
    from ultralytics.utils import DEFAULT_CFG

    from steadyolo.adapters.ultralytics.criterion import Criterion, split_batch
    from steadyolo.train.precision import choose_precision
    from steadyolo.train.recompute import Recompute
    from steadyolo.train.step import Stepper

    torch.manual_seed(0)
    bench.use_all_cores()
    device = torch.device(request["device"])
    precision = choose_precision(asked=request["compute"], amp=None, amp_given=False, channels_last=None, device=device)
    model = DetectionModel(request["model"], nc=80, verbose=False).to(device).train()
    model.args = DEFAULT_CFG
    if precision.channels_last:
        model = model.to(memory_format=torch.channels_last)
    recompute = Recompute(model)
    num_layers = min(request["layers"], recompute.num_layers_max)
    recompute.set(num_layers)
    stepper = Stepper(
        model,
        torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9),
        criterion=Criterion(model),
        split=lambda batch: split_batch(batch, request["batch"]),
        precision=precision,
        scaler=torch.amp.GradScaler(device.type, enabled=False),
        branch_of=lambda _: "main",
    )
    batch = _batch(request["batch"], request["imgsz"], device)

    def step() -> None:
        stepper.accumulate(batch)
        stepper.update()

    step()  # the optimizer's state is made, libraries have chosen their kernels
    seconds = []
    for _ in range(request["steps"]):
        seconds.append(_seconds(step, device))
    forward_s = _seconds(lambda: stepper._loss(batch), device)
    peak = _peak_bytes(step, device)
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return {
        "mib": peak / 2**20,
        "seconds": statistics.median(seconds),
        "forward_s": forward_s,
        "layers": num_layers,
        "compute": precision.compute,
        "digest": digest.hexdigest(),
    }


def _batch(num_images: int, side_px: int, device: Any) -> bench.Json:
    import torch

    num_boxes = num_images * NUM_BOXES
    batch = {
        "img": torch.rand(num_images, 3, side_px, side_px),
        "batch_idx": torch.arange(float(num_images)).repeat_interleave(NUM_BOXES),
        "cls": torch.randint(0, 80, (num_boxes, 1)).float(),
        "bboxes": torch.rand(num_boxes, 4) * 0.4 + 0.1,
    }
    return {name: value.to(device) for name, value in batch.items()}


def _seconds(work: Any, device: Any) -> float:
    import torch

    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began_s = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began_s


def _peak_bytes(work: Any, device: Any) -> int:
    """The most tensor bytes at once while `work` is done, what was there before it included."""
    import gc

    import torch

    from steadyolo.testing.tensor_bytes import peak_bytes

    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated()
    before = sum(
        storage.nbytes()
        for storage in {
            each.untyped_storage()._cdata: each.untyped_storage()
            for each in gc.get_objects()
            if isinstance(each, torch.Tensor) and each.device.type == "cpu"
        }.values()
    )
    return before + peak_bytes(work)


def main() -> None:
    parser = bench.arguments(__doc__, repeats=3)
    parser.add_argument("--model", default="yolov8x.yaml")
    parser.add_argument("--imgsz", type=int, default=1280)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument(
        "--layers", nargs="+", type=int, default=[3, 5, 10, 99], help="first layers; 99: all but the head"
    )
    parser.add_argument("--compute", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument("--steps", type=int, default=2, help="timed steps in each process")
    args = parser.parse_args()
    if args.quick:
        args.model, args.imgsz, args.layers, args.repeats, args.steps = "yolov8n.yaml", 256, [3, 99], 1, 1
    out = args.out / "recompute"
    found: dict[int, list[bench.Json]] = {layers: [] for layers in (0, *args.layers)}
    for repeat, side in bench.alternating(args.repeats, SIDES):
        for layers in (0,) if side == "theirs" else args.layers:
            name = f"{Path(args.model).stem}-{args.imgsz}-{layers}-{repeat}"
            request = {"layers": layers, "device": args.device}
            request |= {name: getattr(args, name) for name in ("model", "imgsz", "batch", "compute", "steps")}
            found[layers].append(bench.in_child(request, out=out, name=name))
            bench.say(f"{name}: {found[layers][-1]['mib']:.0f} MiB, {found[layers][-1]['seconds']:.2f} s a step")
    plain = _side(found.pop(0))
    cases = []
    for measured in found.values():
        case = {"layers": measured[0]["layers"], **_side(measured)}
        case["ratio"] = bench.round_off(case["mib"]["median"] / plain["mib"]["median"])
        case["time_ratio"] = bench.round_off(case["seconds"]["median"] / plain["seconds"]["median"])
        case["same_bits"] = case["digests"] == plain["digests"]
        cases.append(case)
        bench.say(f"{case['layers']} layers: {case['ratio']:.3f} of the memory, {case['time_ratio']:.3f} of the time")
    last = cases[-1]
    bench.finish(
        "recompute",
        ours=last,
        theirs=plain,
        ratio=last["ratio"],
        repeats=args.repeats,
        args=args,
        unit="MiB",
        model=args.model,
        imgsz=args.imgsz,
        batch=args.batch,
        forward_share=bench.round_off(plain["forward_s"]["median"] / plain["seconds"]["median"]),
        cases=cases,
    )


def _side(measured: list[bench.Json]) -> bench.Json:
    spreads = {name: bench.spread([each[name] for each in measured]) for name in ("mib", "seconds", "forward_s")}
    return {**spreads, "compute": measured[0]["compute"], "digests": sorted({each["digest"] for each in measured})}


if __name__ == "__main__":
    bench.start(main, measure)

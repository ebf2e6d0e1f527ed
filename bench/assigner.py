"""Target assignment: memory and time of ours, in pieces, against Ultralytics' own, on the same random batches.

Each measurement is a process of its own, on one thread: the assigner of a detection head (80 classes, 10 anchors a
box) is called once uncounted, some times on the clock, and once under torch's profiler, whose highest sum of tensor
bytes is the memory. A case is IMAGESxBOXESxPIXELS; all images are full but in a `crowd`, where the first one is and the
others have 20 boxes. `same_bits` says that all five outputs agree, bit for bit.

The last line is JSON: `ours`, `theirs` and `ratio` (ours / theirs, of the memory) are those of the first case, `cases`
has all of them, each with `time_ratio`.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from typing import Any

import side_by_side as bench

SIDES = ("ours", "theirs")
CASES = ["1x5000x640", "1x5000x1280", "16x50x640", "16x300x640", "4x2000x640crowd"]
FEW_BOXES = 20


def measure(request: bench.Json) -> bench.Json:
    """Child: one side's memory, time and outputs."""
    import torch
    from ultralytics.utils.tal import TaskAlignedAssigner

    from steadyolo.adapters.ultralytics.assigner import bound_assigners
    from steadyolo.testing.tensor_bytes import peak_bytes

    torch.set_num_threads(1)
    arguments = _batch(request["case"])
    assigner = TaskAlignedAssigner(topk=10, num_classes=80, alpha=0.5, beta=6.0, stride=[8, 16, 32])
    if request["side"] == "ours":
        bound_assigners(_Criterion(assigner))
    outputs = assigner(*arguments)
    seconds = []
    for _ in range(request["calls"]):
        began_s = time.perf_counter()
        assigner(*arguments)
        seconds.append(time.perf_counter() - began_s)
    digest = hashlib.sha256(b"".join(each.contiguous().numpy().tobytes() for each in outputs))
    del outputs
    most = peak_bytes(lambda: assigner(*arguments))
    return {"mib": most / 2**20, "seconds": statistics.median(seconds), "digest": digest.hexdigest()}


class _Criterion:
    def __init__(self, assigner: Any) -> None:
        self.assigner = assigner


def _batch(case: str) -> tuple[Any, ...]:
    import torch
    from ultralytics.utils.tal import make_anchors

    num_images, num_boxes, side_px = (int(word) for word in case.removesuffix("crowd").split("x"))
    torch.manual_seed(0)
    maps = [torch.empty(1, 1, side_px // stride, side_px // stride) for stride in (8, 16, 32)]
    points, strides = make_anchors(maps, [8, 16, 32])
    anchors = points * strides
    scores = torch.rand(num_images, len(anchors), 80) ** 4
    centres = anchors + torch.randn(num_images, len(anchors), 2) * 4
    sizes = torch.rand(num_images, len(anchors), 2) * 96 + 8
    gt_centres = torch.rand(num_images, num_boxes, 2) * side_px
    gt_sizes = torch.rand(num_images, num_boxes, 2) ** 2 * 96 + 4
    is_box = torch.ones(num_images, num_boxes, 1)
    if case.endswith("crowd"):
        is_box[1:, FEW_BOXES:] = 0
    boxes = torch.cat((gt_centres - gt_sizes / 2, gt_centres + gt_sizes / 2), -1).clamp(0, side_px) * is_box
    labels = torch.randint(0, 80, (num_images, num_boxes, 1)) * is_box
    return scores, torch.cat((centres - sizes / 2, centres + sizes / 2), -1), anchors, labels, boxes, is_box


def main() -> None:
    parser = bench.arguments(__doc__, repeats=3)
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--calls", type=int, default=5, help="timed calls in each process")
    args = parser.parse_args()
    if args.quick:
        args.cases, args.repeats, args.calls = ["1x2000x320", "4x1000x320crowd"], 1, 1
    cases = []
    for case in args.cases:
        found: dict[str, list[bench.Json]] = {side: [] for side in SIDES}
        for repeat, side in bench.alternating(args.repeats, SIDES):
            request = {"case": case, "side": side, "calls": args.calls}
            found[side].append(bench.in_child(request, out=args.out / "assigner", name=f"{case}-{side}-{repeat}"))
        sides = {
            side: {name: bench.spread([each[name] for each in measured]) for name in ("mib", "seconds")}
            for side, measured in found.items()
        }
        ratios = [sides["ours"][name]["median"] / sides["theirs"][name]["median"] for name in ("mib", "seconds")]
        cases.append(
            {
                "case": case,
                **sides,
                "ratio": bench.round_off(ratios[0]),
                "time_ratio": bench.round_off(ratios[1]),
                "same_bits": len({each["digest"] for measured in found.values() for each in measured}) == 1,
            }
        )
        bench.say(f"{case}: {ratios[0]:.3f} of the memory, {ratios[1]:.3f} of the time")
    bench.finish(
        "assigner",
        ours=cases[0]["ours"],
        theirs=cases[0]["theirs"],
        ratio=cases[0]["ratio"],
        repeats=args.repeats,
        args=args,
        unit="MiB",
        cases=cases,
    )


if __name__ == "__main__":
    bench.start(main, measure)

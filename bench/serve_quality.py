"""What serving costs in accuracy: the served model as it runs here, against the torch model that it was exported from.

Both look at the same validation pictures with conf=0.001, iou=0.7, max_det=300, each in its own usual way: ours is
`steadyolo.Detector`, theirs `YOLO(pt).predict` in fp32. `scores` computes mAP of both the same way, with Ultralytics'
own matching and averaging. `--runtime` and `--precision` choose ours.

The last line is JSON: `difference` is ours less theirs, in mAP50-95.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import serving
import side_by_side as bench

OPTIONS = {"conf": 0.001, "iou": 0.7, "max_det": 300}
Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # (N, 4) x1 y1 x2 y2, (N,) confidence, (N,) class
Truth = tuple[np.ndarray, np.ndarray]  # (M, 4) x1 y1 x2 y2, (M,) class


def scores(pairs: Iterable[tuple[Found, Truth]]) -> dict[str, float]:
    """mAP50-95 and mAP50 over pictures: what was found on each, and what is there, in the same pixels."""
    import torch
    from ultralytics.engine.validator import BaseValidator
    from ultralytics.utils.metrics import ap_per_class, box_iou

    validator = BaseValidator()
    validator.iouv = torch.linspace(0.5, 0.95, 10)
    hits, confidences, classes, truths = [], [], [], []
    for (xyxy, confidence, found_class), (true_xyxy, true_class) in pairs:
        overlap = box_iou(torch.as_tensor(true_xyxy), torch.as_tensor(xyxy))
        hit = validator.match_predictions(torch.as_tensor(found_class), torch.as_tensor(true_class), overlap)
        hits.append(hit.numpy())
        confidences.append(confidence)
        classes.append(found_class)
        truths.append(true_class)
    precision = ap_per_class(*map(np.concatenate, (hits, confidences, classes, truths)))[5]
    return {"map50_95": float(precision.mean()), "map50": float(precision[:, 0].mean())}


def truth_of(picture: Path, height_px: int, width_px: int) -> Truth:
    """The boxes of a label file beside `images`, in pixels."""
    path = Path(str(picture).replace("/images/", "/labels/")).with_suffix(".txt")
    rows = np.loadtxt(path, np.float32, ndmin=2) if path.stat().st_size else np.empty((0, 5), np.float32)
    centre, half = rows[:, 1:3], rows[:, 3:5] / 2
    xyxy = np.concatenate((centre - half, centre + half), 1) * np.array([width_px, height_px] * 2, np.float32)
    return xyxy.astype(np.float32), rows[:, 0]


def main() -> None:
    """Parent."""
    parser = bench.arguments(__doc__, repeats=1)
    parser.add_argument("--weights", type=Path, help="a .pt (else one is trained in some minutes)")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--precision")
    args = parser.parse_args()
    out = args.out / "serve_quality"
    subject = serving.subject(args, out)
    images = subject.images[:8] if args.quick else subject.images
    request = {"images": [str(image) for image in images], "imgsz": args.imgsz, "weights": str(subject.weights)}
    request |= {"served": str(subject.served), "runtime": args.runtime, "precision": args.precision}
    found = bench.in_child(request, out=out, name="scores")
    bench.finish(
        "serve_quality",
        ours=found["ours"],
        theirs=found["theirs"],
        ratio=found["ours"]["map50_95"] / found["theirs"]["map50_95"],
        repeats=1,
        args=args,
        difference=bench.round_off(found["ours"]["map50_95"] - found["theirs"]["map50_95"]),
        num_images=len(images),
    )


def measure(request: bench.Json) -> bench.Json:
    """Child: both sides on the same images."""
    import ultralytics

    import steadyolo

    settings = {"runtime": request["runtime"], "precision": request["precision"]}
    detector = steadyolo.Detector(request["served"], **settings)
    model = ultralytics.YOLO(request["weights"])
    ours, theirs = [], []
    for path in map(Path, request["images"]):
        mine = detector(path, **OPTIONS)
        their = model.predict(str(path), imgsz=request["imgsz"], verbose=False, **OPTIONS)[0].numpy()
        truth = truth_of(path, *mine.orig_shape)
        for result, kept in ((mine, ours), (their, theirs)):
            kept.append(((result.boxes.xyxy, result.boxes.conf, result.boxes.cls), truth))
    return {"ours": {**scores(ours), "session": detector.session.label}, "theirs": scores(theirs)}


if __name__ == "__main__":
    bench.start(main, measure)

"""`steadyolo detect`: what a served model finds on files, folders, videos and cameras."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from steadyolo.cli.detector import Detector
from steadyolo.errors import SteadyError, UserError
from steadyolo.serve.detector import options_of
from steadyolo.serve.results import Result
from steadyolo.serve.sources import Frame, frames_of

EXIT_SOME_UNREADABLE, EXIT_INTERRUPTED = 1, 130

HELP = """\
Find things on pictures with a served model.

Example: steadyolo detect m.pt photos/
Example: steadyolo detect runs/detect/train 'line-3/*.jpg' --save marked/ --json > found.jsonl
Example: steadyolo detect m.served 0            (the first camera; Ctrl-C ends)
"""


def main(arguments: list[str]) -> None:
    """Do the command. Exit code 1 where a source could not be read, 130 after Ctrl-C."""
    asked = parser().parse_args(arguments)
    from steadyolo.serve.pictures import silence

    silence()
    detector = Detector(
        asked.model, runtime=asked.runtime, device=asked.device, precision=asked.precision, num_threads=asked.threads
    )
    if asked.verbose:
        told = detector.choice.told() if asked.runtime == "auto" else detector.session.label
        _say(f"{detector.model.name} {detector.model.version}, {told}")
    names = list(detector.model.classes)
    options: dict[str, Any] = {
        "conf": asked.conf,
        "iou": asked.iou,
        "max_det": asked.max_det,
        "classes": _indices(asked.classes, names),
        "agnostic_nms": asked.agnostic_nms,
    }
    options_of(options)  # refused before the first picture, not with each
    num_unreadable = 0
    saved: dict[str, str] = {}  # names of files, and what they were made of
    try:
        for frame in frames_of(asked.sources):
            num_unreadable += not _done(frame, detector, options, asked, saved)
    except BrokenPipeError:  # whoever reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    except KeyboardInterrupt:
        _say("stopped")
        raise SystemExit(EXIT_INTERRUPTED) from None
    if num_unreadable:
        _say(f"{num_unreadable} could not be read")
        raise SystemExit(EXIT_SOME_UNREADABLE)


def parser() -> argparse.ArgumentParser:
    """What the command takes. Without typer, which takes longer to load than a picture to look at."""
    one = argparse.ArgumentParser(
        prog="steadyolo detect", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    one.add_argument("model", help="a served model, or the .pt, run folder or store URL that has one")
    one.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="files, folders, patterns, videos, or a camera's number"
    )
    one.add_argument("--conf", type=float, default=0.25, help="least confidence (0.25)")
    one.add_argument("--iou", type=float, default=0.7, help="overlap above which the better of two boxes stays (0.7)")
    one.add_argument("--max-det", type=int, default=300, help="most objects on one picture (300)")
    one.add_argument("--classes", help="only these: names or numbers, with commas between")
    one.add_argument("--agnostic-nms", action="store_true", help="boxes of different classes hide each other too")
    one.add_argument("--save", type=Path, metavar="FOLDER", help="put pictures with what was found drawn on them there")
    one.add_argument("--json", action="store_true", help="one JSON object a picture, a line each, on standard output")
    one.add_argument("--show-times", action="store_true", help="milliseconds by stage")
    one.add_argument("--verbose", action="store_true", help="say which runtime was chosen, and what was measured")
    one.add_argument(
        "--runtime", default="auto", help="auto, openvino, onnxruntime, tensorrt, or torch as the reference"
    )
    one.add_argument("--device", default="cpu", help="cpu or cuda:N")
    one.add_argument("--precision", help="fp32, bf16 or fp16; the device's own where not given")
    one.add_argument("--threads", type=int, help="processor threads; the runtime's own number where not given")
    return one


def _done(
    frame: Frame, detector: Detector, options: dict[str, Any], asked: argparse.Namespace, saved: dict[str, str]
) -> bool:
    """Detect, print and save one frame; False where it cannot be read, which is told."""
    try:
        if frame.error:
            raise UserError(frame.error, remedy="name a picture, a folder of them, a video, or a camera's number")
        result = detector(frame.content, **options)
    except (SteadyError, OSError) as error:
        if isinstance(error, SteadyError) and not isinstance(error, UserError):
            raise  # the device's fault, not the picture's: the next one would fail too
        _say(f"{frame.name}: {str(error).splitlines()[0]}")
        return False
    if asked.json:
        told = {"source": frame.name, "height": result.orig_shape[0], "width": result.orig_shape[1]}
        told |= {"objects": result.summary()} | ({"milliseconds": dict(result.speed)} if asked.show_times else {})
        sys.stdout.write(json.dumps(told) + "\n")
    else:
        times = ", ".join(f"{stage} {spent_ms:.1f} ms" for stage, spent_ms in result.speed.items())
        sys.stdout.write(f"{frame.name}: {told_shortly(result)}{f' ({times})' if asked.show_times else ''}\n")
    sys.stdout.flush()
    if asked.save:
        from steadyolo.serve.drawing import drawn
        from steadyolo.serve.pictures import save

        asked.save.mkdir(parents=True, exist_ok=True)
        save(drawn(result), asked.save / _name_for(frame, saved))
    return True


def _name_for(frame: Frame, saved: dict[str, str]) -> str:
    """A file name that no other frame has: several folders may hold files of one name."""
    name, path, number = frame.file_name, Path(frame.file_name), 2
    while saved.setdefault(name, frame.name) != frame.name:
        name, number = f"{path.stem}-{number}{path.suffix}", number + 1
    return name


def told_shortly(result: Result) -> str:
    """As `2 cats, 1 dog`."""
    if result.probs is not None:
        return ", ".join(f"{one['name']} {one['confidence']:.2f}" for one in result.summary())
    found = result.obb if result.obb is not None else result.boxes
    counts: dict[int, int] = {}
    for index in found.cls.astype(int).tolist() if found is not None else []:
        counts[index] = counts.get(index, 0) + 1
    return ", ".join(f"{num} {result.names[index]}" for index, num in sorted(counts.items())) or "nothing"


def _indices(text: str | None, names: list[str]) -> tuple[int, ...] | None:
    """Numbers of the classes named. Raises: UserError for one that there is not."""
    if text is None:
        return None
    indices = []
    for word in text.split(","):
        index = int(word) if word.strip().isdecimal() else names.index(word.strip()) if word.strip() in names else -1
        if not 0 <= index < len(names):
            raise UserError(f"the model has no class {word.strip()!r}", remedy=f"name one of {', '.join(names)}")
        indices.append(index)
    return tuple(indices)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")

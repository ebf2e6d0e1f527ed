"""`steadyolo export`: from weights to a served model, which `detect`, `serve` and `Detector` take as it is."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steadyolo.cli.models import Chosen, chosen_weights, sent, served_location
from steadyolo.errors import UserError
from steadyolo.serve.served_model import SUFFIX
from steadyolo.spec.location import is_location
from steadyolo.spec.run_spec import parse_pairs

if TYPE_CHECKING:
    from steadyolo.adapters.ultralytics.export_process import ExportRequest, Form

ARGUMENTS = ("format", "imgsz", "nms", "out", "picture", "step")


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="weights (.pt), a run folder, or where its copies are")],
    pairs: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE ...")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Export a model to be served: graphs that were compared with it, and a manifest of everything.

    Example: `steadyolo export best.pt` leaves `best.served` beside it

    Example: `steadyolo export runs/detect/train format=onnx imgsz=480,640 out=line-3.served`

    Example, from one store to another: `steadyolo export s3://bucket/runs/train out=s3://bucket/models/line-3.served`

    `format=` onnx, openvino (the default beside ONNX) or engine; `imgsz=` what it was trained for unless given;
    `nms=False` takes the head that needs no suppression, where there is one; `picture=` what sessions are checked with;
    `step=` a checkpoint of a run folder instead of its best weights.
    """
    from rich.console import Console

    from steadyolo.adapters.ultralytics.export_process import export_model

    arguments, _ = parse_pairs(pairs or [], ARGUMENTS)
    out = str(arguments["out"]) if arguments.get("out") else None
    with (
        Console(stderr=True).status(f"looking for {model}") as status,
        chosen_weights(model, step=_step(arguments.get("step"))) as chosen,
        _made(out, chosen) as folder,
    ):
        request = replace(request_of(chosen.weights, arguments), tensors=chosen.tensors)
        made = export_model(request, folder, chosen.source, tell=lambda what: status.update(f"{model}: {what}"))
        if out is not None and is_location(out):
            status.update(f"sending {out}")
            sent(made, out)
    what = f"{', '.join(made.graphs)} of a {made.task} model, {made.shape_px[0]}x{made.shape_px[1]}"
    if as_json:
        typer.echo(json.dumps({"folder": out or str(folder), "version": made.version, **made.to_manifest()}))
    else:
        typer.echo(f"{out or folder}: {what}, version {made.version}")


@contextmanager
def _made(out: str | None, chosen: Chosen) -> Iterator[Path]:
    """The folder to make: where `out` says, or beside what it is made from; for a store's URL one that is not kept."""
    if out is None or not is_location(out):
        yield chosen.folder if out is None else _named(Path(out))
        return
    name = served_location(out).name
    with tempfile.TemporaryDirectory(prefix="steadyolo-export-") as temporary:
        yield Path(temporary) / name


def _named(out: Path) -> Path:
    """The folder that `out=` names. Raises: UserError for a name that nobody would look for a served model under."""
    if out.suffix != SUFFIX:
        raise UserError(f"out={out} does not end in {SUFFIX}", remedy=f"use out={out.with_suffix(SUFFIX)}")
    return out


def request_of(weights: Path, arguments: dict[str, Any]) -> ExportRequest:
    """What is asked of the exporting process. Raises: UserError for a value that it does not know."""
    from steadyolo.adapters.ultralytics.export_process import ExportRequest

    picture = arguments.get("picture")
    return ExportRequest(
        weights=weights,
        forms=_forms(arguments.get("format")),
        shape_px=_shape_px(arguments.get("imgsz")),
        is_end_to_end=_is_end_to_end(arguments.get("nms")),
        picture=Path(str(picture)) if picture else None,
    )


def _forms(asked: Any) -> tuple[Form, ...]:
    """The graphs to write: ONNX always, which the others are made from."""
    from steadyolo.adapters.ultralytics.export_process import FORMS

    words = asked.replace("[", "").replace("]", "").split(",") if isinstance(asked, str) else asked or ["openvino"]
    forms = [str(word).strip().lower() for word in words]
    for form in forms:
        if form not in FORMS:
            raise UserError(f"format={form} is unknown", remedy=f"use one or more of {', '.join(FORMS)}")
    return tuple(form for form in FORMS if form in {"onnx", *forms})


def _shape_px(asked: Any) -> tuple[int, int] | None:
    sides = asked if isinstance(asked, list | tuple) else [asked]
    if asked is None:
        return None
    if len(sides) not in {1, 2} or not all(isinstance(side, int) and not isinstance(side, bool) for side in sides):
        raise UserError(f"imgsz={asked} is no size", remedy="use pixels: imgsz=640, or height and width: imgsz=480,640")
    return sides[0], sides[-1]


def _step(asked: Any) -> int | None:
    if asked is not None and (isinstance(asked, bool) or not isinstance(asked, int)):
        raise UserError(f"step={asked} is no step", remedy="use the number of a step that a run has a checkpoint of")
    return asked


def _is_end_to_end(nms: Any) -> bool:
    if nms not in {None, False}:
        raise UserError(
            f"nms={nms}: overlapping boxes are suppressed beside the graph, never in it",
            remedy="leave it out, or use nms=False for a head that needs no suppression",
        )
    return nms is False

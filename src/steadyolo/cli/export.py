"""`steadyolo export`: from weights to a served model, which `detect`, `serve` and `Detector` take as it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steadyolo.errors import UserError
from steadyolo.serve.served_model import SUFFIX, Source, digest_of
from steadyolo.spec.run_spec import parse_pairs

if TYPE_CHECKING:
    from steadyolo.adapters.ultralytics.export_process import ExportRequest, Form

ARGUMENTS = ("format", "imgsz", "nms", "out", "picture")


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="weights (.pt), a run folder, or where its copies are")],
    pairs: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE ...")] = None,
) -> None:
    """Export a model to be served: graphs that were compared with it, and a manifest of everything.

    Example: `steadyolo export best.pt` leaves `best.served` beside it

    Example: `steadyolo export runs/detect/train format=onnx imgsz=640,480 out=line-3.served`
    """
    from rich.console import Console

    from steadyolo.adapters.ultralytics.export_process import export_model

    arguments, _ = parse_pairs(pairs or [], ARGUMENTS)
    weights = Path(model)
    if not weights.is_file():
        raise UserError(f"{model} is not there", remedy="name weights (.pt), a run folder or a store's URL")
    folder = Path(str(arguments.get("out") or weights.with_suffix(SUFFIX)))
    source = Source(name=weights.name, sha256=digest_of(weights))
    with Console(stderr=True).status("starting") as status:
        made = export_model(request_of(weights, arguments), folder, source, tell=lambda what: status.update(what))
    typer.echo(f"{made.folder}: {', '.join(made.graphs)} of {made.name} ({made.task}, {len(made.classes)} classes)")


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


def _is_end_to_end(nms: Any) -> bool:
    if nms not in {None, False}:
        raise UserError(
            f"nms={nms}: overlapping boxes are suppressed beside the graph, never in it",
            remedy="leave it out, or use nms=False for a head that needs no suppression",
        )
    return nms is False

"""A served model: a folder with a graph in each format, a golden image with its answer, and the manifest of it all.

m.served/
  manifest.json   written last; nothing counts without it
  model.onnx      and, where asked for, model.xml + model.bin (OpenVINO)
  golden.png      a picture in the size of `shape_px`, and what the source model makes of it: golden.npz
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from steadyolo.errors import DataLoss, UserError

Task = Literal["detect", "segment", "pose", "obb", "classify"]
Fit = Literal["letterbox", "crop"]
INPUT = "images"  # the graph's one input: (batch, 3, height, width), RGB, 0 to 1
MANIFEST, SUFFIX = "manifest.json", ".served"
_COPY_AGAIN = "copy the served model again, or export it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedFile:
    """Size and digest of one file of a served model."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the weights came from. `step` and `epoch` are known for checkpoints of our own runs."""

    name: str  # as it was asked for: a path's last part or a store's URL
    sha256: str
    run: str | None = None
    step: int | None = None
    epoch: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """How a picture is made to fit the graph's shape.

    `letterbox`: scaled to fit, and the rest filled with `pad_value`. `crop`: its shorter side scaled to fit and the
    middle cut out (for a shape that is not square: scaled to just that shape), as Ultralytics classifies.
    """

    fit: Fit
    pad_value: int = 114  # of 0 to 255, in each channel


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """What one needs to know of an exported model to run it. Everything but `folder` is in its manifest."""

    VERSION: ClassVar[int] = 1
    folder: Path
    version: str  # the start of the manifest's digest: names these bytes and no others
    name: str
    task: Task
    classes: tuple[str, ...]  # by index
    shape_px: tuple[int, int]  # height and width that it was exported for
    stride_px: int  # any height and width that are multiples of it will do where `is_dynamic`
    is_dynamic: bool
    is_end_to_end: bool  # its rows are final (x1 y1 x2 y2 score class …): no suppression of overlapping boxes
    preparation: Preparation
    outputs: Mapping[str, tuple[int, ...]]  # name to shape, in the graph's order; -1 for what varies with the input
    keypoint_shape: tuple[int, int] | None  # (points, 2 or 3 numbers each) of a pose model
    num_mask_weights: int | None  # of a segmentation model
    graphs: Mapping[str, str]  # format ("onnx", "openvino") to the file that opens it
    files: Mapping[str, ServedFile]
    source: Source
    made_with: Mapping[str, str]  # versions of packages
    comparison: Mapping[str, float]  # largest differences from the source model, by what was compared

    def graph(self, form: str) -> Path:
        """The file that opens the model in the format `form`. Raises: UserError where it was not exported so."""
        if form not in self.graphs:
            raise UserError(
                f"{self.folder} has no {form} graph, only {', '.join(sorted(self.graphs))}",
                remedy=f"export it again with format={form}",
            )
        return self.folder / self.graphs[form]

    def to_manifest(self) -> dict[str, Any]:
        """All but `folder` and `version`, which follow from where and what the manifest is."""
        values = {name: value for name, value in asdict(self).items() if name not in {"folder", "version"}}
        return {"format": self.VERSION, **values}

    @classmethod
    def from_manifest(cls, data: bytes, folder: Path) -> ServedModel:
        """Raises: UserError for a manifest of another version or kind."""
        try:
            raw = json.loads(data)
            wanted = {"format", *(one.name for one in fields(cls))} - {"folder", "version"}
            if isinstance(raw, dict) and isinstance(raw.get("format"), int) and raw["format"] > cls.VERSION:
                raise UserError(
                    f"{folder / MANIFEST} is of format {raw['format']}; this steadyolo knows {cls.VERSION}",
                    remedy="upgrade steadyolo here, or export the model with the version that is here",
                )
            if not isinstance(raw, dict) or set(raw) != wanted or raw["format"] != cls.VERSION:
                raise ValueError("not the keys of this version")
            if raw["task"] not in get_args(Task) or raw["preparation"]["fit"] not in get_args(Fit):
                raise ValueError(f"task {raw['task']!r}, fit {raw['preparation']['fit']!r}")
            del raw["format"]
            values = raw | {
                "classes": tuple(str(one) for one in raw["classes"]),
                "shape_px": _pair(raw["shape_px"]),
                "preparation": Preparation(**raw["preparation"]),
                "outputs": {name: tuple(shape) for name, shape in raw["outputs"].items()},
                "keypoint_shape": raw["keypoint_shape"] and _pair(raw["keypoint_shape"]),
                "files": {_plain(name): ServedFile(**one) for name, one in raw["files"].items()},
                "source": Source(**raw["source"]),
            }
            return cls(folder=folder, version=version_of(data), **values)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise UserError(
                f"{folder / MANIFEST} is not the manifest of a served model: {error}",
                remedy="export the model again: steadyolo export MODEL",
            ) from None


def open_served(folder: Path, *, verify: bool = True) -> ServedModel:
    """The served model in `folder`; with `verify`, every byte was read and is what was exported.

    Raises: UserError where there is none; DataLoss where a file is missing, of another size or changed.
    """
    try:
        data = (folder / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} is not a served model", remedy=f"make one: steadyolo export {folder}") from None
    model = ServedModel.from_manifest(data, folder)
    for name, file in model.files.items():
        path = folder / name
        if not path.is_file():
            raise DataLoss(f"{path} is missing", remedy=_COPY_AGAIN)
        if (num_bytes := path.stat().st_size) != file.num_bytes:
            raise DataLoss(f"{path} has {num_bytes} bytes, and had {file.num_bytes} when exported", remedy=_COPY_AGAIN)
    if verify:
        verify_served(model)
    return model


def verify_served(model: ServedModel) -> None:
    """Read every byte of the model's files. Raises: DataLoss where one is not what was exported."""
    for name, file in model.files.items():
        path = model.folder / name
        if digest_of(path) != file.sha256:
            raise DataLoss(f"{path} was changed since it was exported: its digest differs", remedy=_COPY_AGAIN)


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def version_of(manifest: bytes) -> str:
    """The version that a manifest stands for."""
    return hashlib.sha256(manifest).hexdigest()[:12]


def _pair(values: Any) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)


def _plain(name: str) -> str:
    if Path(name).name != name or name in {"", ".", "..", MANIFEST}:
        raise ValueError(f"file name {name!r}")
    return name

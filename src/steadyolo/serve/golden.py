"""The golden picture of a served model: what its source made of it, and whether a session makes the same of it."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadyolo.errors import DataLoss
from steadyolo.serve.answers import Layout, Parts, same_objects
from steadyolo.serve.served_model import ServedModel
from steadyolo.serve.service import DeviceFault
from steadyolo.serve.session import Images, Output, Session

PICTURE, ANSWER = "golden.png", "golden.npz"
NUM_ROUNDINGS = 4.0  # runtimes round to bfloat16 in other places than the measurement did
LEAST_TOLERANCE, MOST_TOLERANCE = 0.05, 0.75  # of how much a part of the answer varies
_ROWS = "rows of "  # in the file: which rows of a part are kept
_NUM_SPREAD, _NUM_STRONGEST = 192, 64  # rows that are kept: from everywhere, and the surest
_NUM_STRETCHES = 8
_MOST = 10.0  # difference
_SHARES = {"scores", "probabilities", "visibilities"}  # what is between 0 and 1
Picture = NDArray[np.uint8]  # (height, width, 3), RGB


def as_images(*pictures: Picture) -> Images:
    """Pictures of one shape as a graph takes them. Shapes: (H, W, 3) in, (N, 3, H, W) out."""
    return np.ascontiguousarray(np.stack(pictures).transpose(0, 3, 1, 2), np.float32) / np.float32(255)


class Golden:
    """The golden picture and its answer, in memory: the files of a model may go, or be replaced, while it is served."""

    def __init__(self, model: ServedModel) -> None:
        self.picture = read_png((model.folder / PICTURE).read_bytes())
        self._model, self._layout = model, Layout.of(model)
        try:
            with np.load(model.folder / ANSWER) as stored:
                self._expected: Parts = {name: stored[name] for name in stored.files if not name.startswith(_ROWS)}
                self._rows = {name.removeprefix(_ROWS): stored[name] for name in stored.files if name.startswith(_ROWS)}
        except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataLoss(f"{ANSWER} is not what was exported: {error}", remedy="export the model again") from None

    @property
    def images(self) -> Images:
        """The picture as the graph takes it. Shapes: (1, 3, height, width)."""
        return as_images(self.picture)

    def check(self, session: Session) -> list[Output]:
        """What the session answered.

        Raises: DeviceFault where that is not what the source model answered to the golden picture.

        What rounding to bfloat16 does to this model was measured when it was exported; some times that is allowed. It
        is far less than what a wrong weight, a permuted or an old answer does (docs/adr/0017).
        """
        outputs = session.run(self.images)
        if wrong := beyond(self.differences(outputs), self._model.comparison):
            told = ", ".join(f"{name} differ by {value:.2g}" for name, value in wrong.items())
            raise DeviceFault(
                f"{session.label} answers wrongly to the golden picture of {self._model.name}: {told} "
                "(1 is as much as they vary)",
                remedy="take this device out: let another one answer, and restart its process",
            )
        return outputs

    def differences(self, outputs: Sequence[Output]) -> dict[str, float]:
        """How far outputs are from the golden answer, by part; 1 is as much as the answer itself varies."""
        expected = self._expected
        try:
            whole = self._layout.parts(outputs)
            given = {name: whole[name][:, self._rows[name]] for name in expected}
            if any(len(whole[name]) != 1 or given[name].shape != part.shape for name, part in expected.items()):
                raise ValueError("another shape")
        except (ValueError, IndexError, KeyError):
            return dict.fromkeys(expected, _MOST)
        return differences(expected, given, self._layout)


def beyond(differences: Mapping[str, float], measured: Mapping[str, float]) -> dict[str, float]:
    """Those that rounding does not explain. `measured` holds what bfloat16 does to the model: `bf16 <part>`."""
    return {
        name: value
        for name, value in differences.items()
        if not value <= min(max(LEAST_TOLERANCE, NUM_ROUNDINGS * measured.get(f"bf16 {name}", 0.0)), MOST_TOLERANCE)
    }


def differences(expected: Parts, given: Parts, layout: Layout) -> dict[str, float]:
    """How far one answer to a picture is from another, by part; 1 is as much as `expected` itself varies."""
    if layout.is_end_to_end:
        expected, given = same_objects(expected, given)
    return {
        name: _difference(name, part, given[name], is_corners=layout.is_end_to_end) for name, part in expected.items()
    }


def write_golden(folder: Path, picture: Picture, outputs: Sequence[Output], layout: Layout) -> None:
    """Keep `picture`, and as much of what the source model answers as tells right from wrong."""
    (folder / PICTURE).write_bytes(write_png(picture))
    parts = layout.parts(outputs)
    best = parts.get("scores")
    kept: dict[str, NDArray[Any]] = {}
    for name, part in parts.items():
        rows = np.arange(part.shape[1])
        if not layout.is_end_to_end or name == "masks":
            strength = part if best is None or name == "masks" else best
            strongest = np.argsort(-strength[0].max(-1), kind="stable")[:_NUM_STRONGEST]
            rows = np.union1d(np.linspace(0, part.shape[1] - 1, _NUM_SPREAD).astype(np.int64), strongest)
        kept[name], kept[_ROWS + name] = part[:, rows], rows
    np.savez_compressed(folder / ANSWER, **kept)  # type: ignore[arg-type]


def _difference(name: str, expected: Output, given: Output, *, is_corners: bool) -> float:
    """The worst root mean square over stretches of rows, which are places of one size and neighbourhood."""
    if not np.isfinite(given).all():
        return _MOST
    if name == "classes":
        return float((expected != given).mean()) if expected.size else 0.0
    if name == "boxes":
        change = _box_change(expected, given, is_corners=is_corners)
    else:
        if name in _SHARES:
            expected, given = _logit(expected), _logit(given)
        varies = expected.std(axis=(0, 1)) if expected.shape[1] > 1 else expected.std()
        change = (given - expected) / np.maximum(varies, 0.5 if name in _SHARES else 1e-3)
    stretches = np.array_split(np.minimum(np.abs(change), _MOST), min(_NUM_STRETCHES, max(change.shape[1], 1)), axis=1)
    return max(float(np.sqrt((one**2).mean())) if one.size else 0.0 for one in stretches)


def _box_change(expected: Output, given: Output, *, is_corners: bool) -> Output:
    """By how much boxes moved, in halves of their sizes, and how much larger or smaller they became."""
    centre, size = _centre_and_size(expected, is_corners=is_corners)
    other_centre, other_size = _centre_and_size(given, is_corners=is_corners)
    size, other_size = np.maximum(np.abs(size), 0.1), np.maximum(np.abs(other_size), 0.1)
    moved = (other_centre - centre) / np.maximum(size, 1.0)
    return np.asarray(2.0 * np.concatenate([moved, np.log(other_size / size)], axis=-1), np.float32)


def _centre_and_size(boxes: Output, *, is_corners: bool) -> tuple[Output, Output]:
    first, second = boxes[..., :2], boxes[..., 2:]
    return ((first + second) * np.float32(0.5), second - first) if is_corners else (first, second)


def _logit(share: Output) -> Output:
    """Differences of small shares count as those of large ones."""
    bounded = np.clip(share, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(bounded / (1 - bounded)), np.float32)


# --- a PNG of eight bits in three channels, which needs no image library ---

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UP = 2  # the filter that takes each row as the difference from the one above


def write_png(picture: Picture) -> bytes:
    """Shapes: (H, W, 3)."""
    height, width, _ = picture.shape
    rows = picture.reshape(height, -1)
    filtered = np.full((height, 1 + width * 3), _UP, np.uint8)
    filtered[:, 1:] = np.diff(rows, axis=0, prepend=np.zeros((1, width * 3), np.uint8))
    header = b"".join(size.to_bytes(4, "big") for size in (width, height)) + bytes((8, 2, 0, 0, 0))
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 9)), (b"IEND", b""))
    return _SIGNATURE + b"".join(
        len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big") for name, data in chunks
    )


def read_png(data: bytes) -> Picture:
    """What `write_png` was given. Raises: DataLoss for any other file."""
    try:
        width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
        num_bytes = int.from_bytes(data[33:37], "big")
        filtered = np.frombuffer(zlib.decompress(data[41 : 41 + num_bytes]), np.uint8).reshape(height, 1 + width * 3)
        if data[37:41] != b"IDAT" or (filtered[:, 0] != _UP).any():
            raise ValueError("another kind of PNG")
    except (ValueError, zlib.error) as error:
        raise DataLoss(f"{PICTURE} is not what was exported: {error}", remedy="export the model again") from None
    return np.cumsum(filtered[:, 1:], axis=0, dtype=np.uint8).reshape(height, width, 3)

"""The golden picture of a served model: what its source made of it, and whether a session makes the same of it."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steadyolo.errors import DataLoss
from steadyolo.serve.answers import Layout, Parts
from steadyolo.serve.served_model import ServedModel
from steadyolo.serve.service import DeviceFault
from steadyolo.serve.session import Images, Output, Session

PICTURE, ANSWER = "golden.png", "golden.npz"
Picture = NDArray[np.uint8]  # (height, width, 3), RGB


def golden_images(model: ServedModel) -> Images:
    """The golden picture as the graph takes it: (1, 3, height, width)."""
    picture = read_png((model.folder / PICTURE).read_bytes())
    return as_images(picture)


def as_images(*pictures: Picture) -> Images:
    """Pictures of one shape as a graph takes them. Shapes: (H, W, 3) in, (N, 3, H, W) out."""
    return np.ascontiguousarray(np.stack(pictures).transpose(0, 3, 1, 2), np.float32) / np.float32(255)


def write_golden(folder: Path, picture: Picture, outputs: list[Output], layout: Layout) -> None:
    """Keep `picture` and what the source model answers to it."""
    (folder / PICTURE).write_bytes(write_png(picture))
    np.savez_compressed(folder / ANSWER, **_kept(layout.parts(outputs)))  # type: ignore[arg-type]


def check_golden(session: Session, model: ServedModel) -> None:
    """Raises: DeviceFault where the session does not answer to the golden picture as the source model did."""
    outputs = session.run(golden_images(model))
    if not all(bool(np.isfinite(one).all()) for one in outputs):
        raise DeviceFault(f"{session.label}: answers with numbers that are not finite", remedy="use another device")


def _kept(parts: Parts) -> Parts:
    return parts


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

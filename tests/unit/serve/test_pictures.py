"""Bytes to pixels: the same pixels as Ultralytics' loader, and a precise refusal for whatever is no whole picture."""

from __future__ import annotations

import io
import resource
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from steadyolo.data.boards.defect import DEFECTS
from steadyolo.data.boards.picture import take_picture
from steadyolo.serve.headers import read_header
from steadyolo.serve.pictures import decode
from steadyolo.serve.service import BadImage

HEIGHT_PX, WIDTH_PX = 90, 130
UPRIGHT = 0x0112  # the EXIF tag that says which way is up


def encoded(kind: str, mode: str = "RGB", **more) -> bytes:
    board = take_picture((1,), board_px=(WIDTH_PX, HEIGHT_PX), kinds=DEFECTS).image[..., ::-1]
    image, file = Image.fromarray(np.ascontiguousarray(board)).convert(mode), io.BytesIO()
    if more.pop("frames", 1) > 1:
        more |= {"save_all": True, "append_images": [image.rotate(180)]}
    if (turn := more.pop("turn", None)) is not None:
        more["exif"] = Image.Exif()
        more["exif"][UPRIGHT] = turn
    image.save(file, kind, **more)
    return file.getvalue()


def grey16() -> bytes:
    values = np.linspace(0, 65535, HEIGHT_PX * WIDTH_PX).astype(np.uint16).reshape(HEIGHT_PX, WIDTH_PX)
    return cv2.imencode(".png", values)[1].tobytes()


def colour16_tiff() -> bytes:
    values = np.linspace(0, 65535, HEIGHT_PX * WIDTH_PX * 3).astype(np.uint16).reshape(HEIGHT_PX, WIDTH_PX, 3)
    return cv2.imencode(".tiff", values)[1].tobytes()


FILES = {
    "jpeg.jpg": lambda: encoded("JPEG"),
    "progressive.jpg": lambda: encoded("JPEG", progressive=True),
    "grey.jpg": lambda: encoded("JPEG", "L"),
    "cmyk.jpg": lambda: encoded("JPEG", "CMYK"),
    **{f"turned{turn}.jpg": lambda turn=turn: encoded("JPEG", turn=turn) for turn in range(1, 9)},
    "plain.png": lambda: encoded("PNG"),
    "alpha.png": lambda: encoded("PNG", "RGBA"),
    "palette.png": lambda: encoded("PNG", "P"),
    "bits.png": lambda: encoded("PNG", "1"),
    "grey16.png": grey16,
    "turned.png": lambda: encoded("PNG", turn=6),
    "animated.png": lambda: encoded("PNG", frames=2),
    "lossy.webp": lambda: encoded("WEBP"),
    "lossless.webp": lambda: encoded("WEBP", lossless=True),
    "alpha.webp": lambda: encoded("WEBP", "RGBA"),
    "animated.webp": lambda: encoded("WEBP", frames=2),
    "plain.bmp": lambda: encoded("BMP"),
    "plain.tif": lambda: encoded("TIFF"),
    "packed.tif": lambda: encoded("TIFF", compression="tiff_lzw"),
    "alpha.tif": lambda: encoded("TIFF", "RGBA"),
    "turned.tif": lambda: encoded("TIFF", turn=6),
    "grey.tif": lambda: encoded("TIFF", "L"),
    "colour16.tif": colour16_tiff,
    "pages.tif": lambda: encoded("TIFF", frames=2),
    "animated.gif": lambda: encoded("GIF", frames=2),
    "plain.avif": lambda: encoded("AVIF"),
}


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_those_that_ultralytics_reads(name: str, tmp_path: Path) -> None:
    from ultralytics.utils.patches import imread

    data = FILES[name]()
    (tmp_path / name).write_bytes(data)
    expected, found = imread(tmp_path / name), decode(data)
    header = read_header(bytearray(data))  # as it comes from a socket
    assert found.dtype == np.uint8
    assert sorted(found.shape[:2]) == sorted((header.height_px, header.width_px))
    if expected.shape[2] == 1:  # it leaves a grey picture's one channel where nobody asked for colours
        expected = np.repeat(expected, 3, axis=2)
    if name.endswith(".avif"):  # it reads these with another library, whose rounding differs
        np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=3)
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("name", [name for name in FILES if name not in {"animated.png", "pages.tif"}])
def test_torn_files_are_refused_not_half_shown(name: str, share: float) -> None:
    data = FILES[name]()
    with pytest.raises(BadImage):
        decode(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"hello", b"%PDF-1.7", b"\x1f\x8b" + bytes(99), b"\xff\xd8\xff", b"BM", b"II*\0", b"RIFF....WEBP",
     b"\x89PNG\r\n\x1a\n", b"GIF89a", b"....ftypavif", b"<svg xmlns='http://www.w3.org/2000/svg'/>", bytes(5000)],
    ids=range(14),
)  # fmt: skip
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(BadImage) as refusal:
        decode(data)
    assert refusal.value.remedy


def png_bomb(width: int, height: int) -> bytes:
    """A few kilobytes that say they are this large."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 7) // 8 + 1) * min(height, 2000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_bombs_are_refused_before_they_are_unpacked() -> None:
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadImage, match="30,000 × 30,000 pixels: more than 100,000,000"):
        decode(png_bomb(30_000, 30_000))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 50_000
    assert cv2.imdecode(np.frombuffer(png_bomb(1000, 1000), np.uint8), 1).shape == (1000, 1000, 3), "not a real bomb"


def test_the_limit_is_what_is_asked_for() -> None:
    data = FILES["plain.png"]()
    assert decode(data, max_pixels=HEIGHT_PX * WIDTH_PX).shape == (HEIGHT_PX, WIDTH_PX, 3)
    with pytest.raises(BadImage, match="more than"):
        decode(data, max_pixels=HEIGHT_PX * WIDTH_PX - 1)


def test_changed_bytes_give_a_picture_or_a_refusal() -> None:
    random = np.random.default_rng(4)
    for name in ("jpeg.jpg", "plain.png", "lossy.webp", "packed.tif", "animated.gif", "plain.bmp", "plain.avif"):
        data = np.frombuffer(FILES[name](), np.uint8)
        for _ in range(30):
            changed = data.copy()
            changed[random.integers(0, len(data), 5)] = random.integers(0, 256, 5)
            with suppress(BadImage):
                assert decode(changed.tobytes()).ndim == 3

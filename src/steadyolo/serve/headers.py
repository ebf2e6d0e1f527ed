"""How large a picture is, read from the first bytes of its file: nothing is decoded to find out."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from steadyolo.serve.service import BadImage

KINDS = "JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers that no length follows
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_TIFF_SIZES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # its types of whole numbers, in the words of `struct`


@dataclass(frozen=True, slots=True)
class Header:
    """The kind of file, and the picture's size as it is stored, before it is turned upright."""

    kind: str
    height_px: int
    width_px: int


def read_header(data: bytes | bytearray) -> Header:
    """Raises: BadImage for bytes that begin like no picture of a kind that is taken, or tell no size."""
    try:
        header = _read(data)
    except (struct.error, IndexError, ValueError):
        header = None
    if header is None:
        raise BadImage(f"{len(data):,} bytes that are no {KINDS} picture", remedy="send one of these, whole")
    if header.height_px < 1 or header.width_px < 1:
        raise BadImage(
            f"a {header.kind} picture of {header.width_px} × {header.height_px} pixels", remedy="send another"
        )
    return header


def _read(data: bytes | bytearray) -> Header | None:
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR":
        width, height = struct.unpack_from(">II", data, 16)
        return Header("PNG", height, width)
    if data.startswith((b"GIF87a", b"GIF89a")):
        width, height = struct.unpack_from("<HH", data, 6)
        return Header("GIF", height, width)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    if data.startswith(b"BM"):
        return _bmp(data)
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return _tiff(data)
    if data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis", b"mif1"):
        return _avif(data)
    return None


def _jpeg(data: bytes | bytearray) -> Header | None:
    at = 2
    while data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # filling
            at += 1
        elif marker in _JPEG_ALONE:
            at += 2
        elif marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return Header("JPEG", height, width)
        else:
            at += 2 + int(struct.unpack_from(">H", data, at + 2)[0])
    return None


def _webp(data: bytes | bytearray) -> Header | None:
    match bytes(data[12:16]):
        case b"VP8X":
            width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        case b"VP8L":
            bits = int(struct.unpack_from("<I", data, 21)[0])
            width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
        case _:
            return None
    return Header("WebP", height, width)


def _bmp(data: bytes | bytearray) -> Header:
    if struct.unpack_from("<I", data, 14)[0] == 12:
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
    return Header("BMP", abs(height), width)  # rows from the top down have a negative height


def _tiff(data: bytes | bytearray) -> Header | None:
    order = "<" if data.startswith(b"II") else ">"
    is_big = data[2:4] in (b"+\0", b"\0+")
    start = int(struct.unpack_from(order + ("Q" if is_big else "I"), data, 8 if is_big else 4)[0])
    num_entries = int(struct.unpack_from(order + ("Q" if is_big else "H"), data, start)[0])
    entry_bytes, value_at = (20, 12) if is_big else (12, 8)
    sides: dict[int, int] = {}
    for number in range(min(num_entries, 4096)):
        entry = start + (8 if is_big else 2) + number * entry_bytes
        tag, kind = struct.unpack_from(order + "HH", data, entry)
        if tag in {256, 257} and kind in _TIFF_SIZES:
            sides[tag] = int(struct.unpack_from(order + _TIFF_SIZES[kind], data, entry + value_at)[0])
    return Header("TIFF", sides[257], sides[256]) if len(sides) == 2 else None


def _avif(data: bytes | bytearray) -> Header | None:
    """The largest of the sizes told: a picture of tiles tells those of its tiles too."""
    sizes, at = [(0, 0)], data.find(b"ispe")
    while at != -1:
        width, height = struct.unpack_from(">II", data, at + 8)
        sizes.append((height, width))
        at = data.find(b"ispe", at + 4)
    height, width = max(sizes, key=lambda one: one[0] * one[1])
    return Header("AVIF", height, width) if height else None

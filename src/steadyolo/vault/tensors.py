"""Tensors as safetensors files: written as a stream and always to the same bytes, read by the safetensors library."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from steadyolo.errors import DataLoss, UserError
from steadyolo.state.host_array import host_array

if TYPE_CHECKING:
    import torch

# Source: the format's description in the README of the safetensors library, 0.8.
DTYPE_NAMES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}
GATHER_BYTES = 64 * 1024  # every write hands the interpreter lock back and forth, so small tensors share one


def encode(tensors: Mapping[str, torch.Tensor]) -> Iterator[memoryview]:
    """The bytes of a safetensors file with `tensors`, piece by piece.

    Same names and values give the same bytes, whatever their order and strides: each tensor is stored contiguously in
    its logical order. A big one that is contiguous already is not copied, and any other only while it is its turn.
    Raises: UserError for a dtype that the format lacks, a tensor that is not in host memory and the reserved name.
    """
    # Wide types first, as the library does: every tensor then starts at a multiple of its own element size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    return _gathered(_pieces({name: tensors[name] for name in names}))


def decode(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, in host memory. Raises `DataLoss` when it is not one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataLoss(f"{path} cannot be read as tensors: {error}", remedy="use an older checkpoint") from error


def _pieces(tensors: Mapping[str, torch.Tensor]) -> Iterator[memoryview]:
    yield memoryview(_header(tensors))
    for tensor in tensors.values():
        yield _raw(tensor)


def _header(tensors: Mapping[str, torch.Tensor]) -> bytes:
    entries: dict[str, object] = {}
    end = 0
    for name, tensor in tensors.items():
        dtype = DTYPE_NAMES.get(str(tensor.dtype))
        if dtype is None or tensor.device.type != "cpu" or name == "__metadata__":
            raise UserError(
                f"tensor {name!r} of {tensor.dtype} on {tensor.device} cannot be stored",
                remedy=f"store host tensors of {', '.join(DTYPE_NAMES)} under another name than __metadata__",
            )
        start, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _raw(tensor: torch.Tensor) -> memoryview:
    import numpy as np

    # Copies only where the memory is not in logical order.
    return np.ascontiguousarray(host_array(tensor)).reshape(-1).view(np.uint8).data


def _gathered(pieces: Iterable[memoryview]) -> Iterator[memoryview]:
    """The same bytes with small neighbours joined."""
    small = bytearray()
    for piece in pieces:
        if piece.nbytes < GATHER_BYTES:
            small += piece
        if small and (piece.nbytes >= GATHER_BYTES or len(small) >= GATHER_BYTES):
            yield memoryview(small)
            small = bytearray()  # a new one: the reader may still hold the last
        if piece.nbytes >= GATHER_BYTES:
            yield piece
    if small:
        yield memoryview(small)

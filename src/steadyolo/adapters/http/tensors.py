"""Tensors of the Open Inference Protocol: read from JSON or bytes, written as either."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from steadyolo.adapters.http.large_json import floats, read_json
from steadyolo.adapters.http.problems import Refused
from steadyolo.serve.served_model import INPUT, ServedModel
from steadyolo.serve.service import Tensor

DATATYPE = "FP32"
_ITEM_BYTES = 4
_CHUNK_NUMBERS = 5_000  # written as JSON at once: others get their turn in between


@dataclass(frozen=True, slots=True)
class Declared:
    """Name and shape of a tensor that a graph takes or gives; a side of -1 may be any."""

    name: str
    shape: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": DATATYPE, "shape": list(self.shape)}


def input_of(model: ServedModel) -> Declared:
    """What the model's graph takes."""
    height_px, width_px = (-1, -1) if model.is_dynamic else model.shape_px
    return Declared(INPUT, (-1, 3, height_px, width_px))


def outputs_of(model: ServedModel) -> tuple[Declared, ...]:
    """What the model's graph gives, in its order."""
    return tuple(Declared(name, tuple(shape)) for name, shape in model.outputs.items())


@dataclass(frozen=True, slots=True)
class Request:
    """An inference as it was asked for."""

    id: str | None
    images: Tensor
    is_binary: Mapping[str, bool]  # by output, in the order that was asked for
    timeout_s: float | None


async def read_request(body: bytes, header_length: str | None, model: ServedModel) -> Request:
    """Raises: Refused for what the protocol or the model's graph does not take."""
    head, rest = _split(body, header_length)
    asked = await _json_object(head)
    inputs = asked.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise _bad("inputs has to be a list of one tensor", f"give one input named {INPUT}")
    parameters = asked.get("parameters", {})
    if not isinstance(parameters, dict):
        raise _bad("parameters is no object", "give parameters as an object, or leave it out")
    number = asked.get("id")
    if number is not None and not (isinstance(number, str) and len(number) <= 1_000):
        raise _bad("id is no text of at most 1000 characters", "give id as a text, or leave it out")
    return Request(
        id=number,
        is_binary=_wanted(asked.get("outputs"), parameters.get("binary_data_output", False), outputs_of(model)),
        timeout_s=_timeout_s(parameters.get("timeout")),
        images=_images(inputs[0], rest, input_of(model)),
    )


def write_answer(
    about: Mapping[str, Any], outputs: Mapping[str, Tensor], is_binary: Mapping[str, bool]
) -> tuple[int | None, Iterator[bytes]]:
    """The pieces of the answer's body, and the length of its JSON part where bytes follow it."""
    heads, as_bytes, as_numbers = [], [], {}
    for name, binary in is_binary.items():
        tensor = outputs[name]
        one: dict[str, Any] = {"name": name, "datatype": DATATYPE, "shape": list(tensor.shape)}
        if binary:
            one["parameters"] = {"binary_data_size": len(tensor.data)}
            as_bytes.append(bytes(tensor.data))
        else:
            as_numbers[name] = memoryview(tensor.data).cast("f")
        heads.append(one)
    if not as_bytes:
        return None, _written(about, heads, as_numbers)
    head = b"".join(_written(about, heads, as_numbers))
    return len(head), iter([head, *as_bytes])


def _written(
    about: Mapping[str, Any], heads: list[dict[str, Any]], numbers: Mapping[str, memoryview[float]]
) -> Iterator[bytes]:
    yield json.dumps({**about, "outputs": []})[:-2].encode()
    for index, head in enumerate(heads):
        yield (", " if index else "").encode() + json.dumps(head)[:-1].encode()
        if head["name"] in numbers:
            yield b', "data": ['
            flat = numbers[head["name"]]
            for start in range(0, len(flat), _CHUNK_NUMBERS):
                text = json.dumps(flat[start : start + _CHUNK_NUMBERS].tolist(), separators=(",", ":"))[1:-1]
                text = text.replace("NaN", "null").replace("-Infinity", "null").replace("Infinity", "null")
                yield ("," if start else "").encode() + text.encode()
            yield b"]"
        yield b"}"
    yield b"]}"


def _split(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    if header_length is None:
        return body, b""
    if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 12):
        raise _bad("Inference-Header-Content-Length is no number", "give the length of the JSON part in bytes")
    length = int(header_length)
    if not 0 < length <= len(body):
        raise _bad(
            f"Inference-Header-Content-Length is {length}, and the body has {len(body)} bytes",
            "give the length of the JSON part in bytes",
        )
    return body[:length], body[length:]


async def _json_object(head: bytes) -> dict[str, Any]:
    try:
        asked = await read_json(head)
    except (ValueError, OverflowError, RecursionError) as error:
        raise _bad(f"the request is no JSON: {error}"[:200], "send the protocol's JSON object") from None
    if not isinstance(asked, dict):
        raise _bad("the request is no JSON object", "send the protocol's JSON object")
    return asked


def _images(given: dict[str, Any], rest: bytes, wanted: Declared) -> Tensor:
    if given.get("name") != wanted.name:
        raise _bad(f"no input is named {given.get('name')!r}"[:200], f"name it {wanted.name}")
    if given.get("datatype") != DATATYPE:
        raise _bad(f"datatype is {given.get('datatype')!r}"[:200], f"give {DATATYPE}")
    shape = _shape(given.get("shape"), wanted)
    parameters = given.get("parameters", {})
    if not isinstance(parameters, dict) or any(str(name).startswith("shared_memory") for name in parameters):
        raise _bad("tensors in shared memory are not read", "send the tensor's bytes or numbers")
    num_bytes = parameters.get("binary_data_size")
    if num_bytes is not None:
        if isinstance(num_bytes, bool) or num_bytes != len(rest) or len(rest) != math.prod(shape) * _ITEM_BYTES:
            raise _bad(
                f"binary_data_size is {num_bytes}, {len(rest)} bytes follow, and the shape {shape} takes "
                f"{math.prod(shape) * _ITEM_BYTES}"[:300],
                "send the tensor's bytes after the JSON part: little-endian, row by row",
            )
        return Tensor(shape, rest)
    if rest:
        raise _bad(f"{len(rest)} bytes follow the JSON part", "give their number as binary_data_size")
    return Tensor(shape, memoryview(_numbers(given.get("data"), shape)).cast("B"))


def _shape(given: Any, wanted: Declared) -> tuple[int, ...]:
    text = f"give [{', '.join('N' if side < 0 else str(side) for side in wanted.shape)}]"
    if not isinstance(given, list) or len(given) != len(wanted.shape):
        raise _bad(f"shape is {given!r}"[:200], text)
    for side, side_wanted in zip(given, wanted.shape, strict=True):
        if type(side) is not int or not 0 < side < 1 << 20 or side_wanted not in (-1, side):
            raise _bad(f"shape is {given!r}"[:200], text)
    return tuple(given)


def _numbers(data: Any, shape: tuple[int, ...]) -> array[float]:
    """The numbers of a list that is flat, or as deep as the shape."""
    numbers = array("f")
    try:
        is_flat = isinstance(data, list | array) and not isinstance(next(iter(data), None), list | array)
        _gather(data, (math.prod(shape),) if is_flat else shape, numbers)
    except (TypeError, ValueError, OverflowError) as error:
        raise _bad(f"data is not as shape says: {error}"[:200], "give the numbers row by row") from None
    return numbers


def _gather(data: Any, shape: tuple[int, ...], numbers: array[float]) -> None:
    if not isinstance(data, list | array) or len(data) != shape[0]:
        size = len(data) if isinstance(data, list | array) else "no list"
        raise ValueError(f"{size} where there should be {shape[0]}")
    if len(shape) == 1:
        numbers.extend(data if isinstance(data, array) else floats(data))
    else:
        for one in data:
            _gather(one, shape[1:], numbers)


def _wanted(asked: Any, binary_by_default: Any, known: tuple[Declared, ...]) -> dict[str, bool]:
    names = [one.name for one in known]
    if not isinstance(binary_by_default, bool):
        raise _bad("binary_data_output is neither true nor false", "give true or false")
    if asked is None or asked == []:
        return dict.fromkeys(names, binary_by_default)
    if not isinstance(asked, list) or not all(isinstance(one, dict) for one in asked):
        raise _bad("outputs is no list of objects", "give outputs as a list, or leave it out")
    wanted: dict[str, bool] = {}
    for one in asked:
        if one.get("name") not in names or one["name"] in wanted:
            raise _bad(f"no output is named {one.get('name')!r}, or it is asked for twice"[:200], f"use {names}")
        parameters = one.get("parameters", {})
        if not isinstance(parameters, dict) or set(parameters) - {"binary_data"}:
            raise _bad(f"parameters of an output are {parameters!r}"[:200], "give binary_data, or nothing")
        is_binary = parameters.get("binary_data", binary_by_default)
        if not isinstance(is_binary, bool):
            raise _bad("binary_data is neither true nor false", "give true or false")
        wanted[one["name"]] = is_binary
    return wanted


def _timeout_s(microseconds: Any) -> float | None:
    if microseconds is None:
        return None
    if type(microseconds) is not int or not 0 < microseconds < 1 << 53:
        raise _bad(f"timeout is {microseconds!r}"[:200], "give it in microseconds, as a whole number")
    return microseconds / 1e6


def _bad(message: str, remedy: str) -> Refused:
    return Refused(400, "bad_tensor", message, remedy=remedy)

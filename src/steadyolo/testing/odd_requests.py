"""Requests to a server of models that are wrong in many ways, from a seed: torn, packed, slow, wrongly typed."""

from __future__ import annotations

import gzip
import json
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any

_WORDS = ["", "\0", "é", "../..", "%00", "a" * 300, "-1", "1e999", "NaN", "null", "true", "[]", "{}", "9" * 40, "0x1"]
_TYPES = ["image/png", "application/octet-stream", "application/json", "text/html", "multipart/form-data", "", "a/b"]
_HEADERS = ["Content-Encoding", "Inference-Header-Content-Length", "Authorization", "Accept", "Expect", "Connection"]
_QUERIES = ["conf", "iou", "max_det", "classes", "agnostic_nms", "version", "other"]
_BOMB_BYTES = 200 << 20


@dataclass(frozen=True, slots=True)
class OddRequest:
    """The bytes that are sent, in pieces with `pause_s` between; `kind` names what is odd about it."""

    kind: str
    pieces: tuple[bytes, ...]
    pause_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def encoded(self) -> bytes:
        lines = [f"{self.method} {self.path} HTTP/1.1", "Host: a", "Connection: close"]
        headers = {"Content-Length": str(len(self.body)), **self.headers}
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + self.body


def odd_requests(seed: int, *, model: str, picture: bytes, shape: tuple[int, ...]) -> Iterator[OddRequest]:
    """Endlessly many, the same for each seed. `picture` and `shape` are what the model takes."""
    random = Random(seed)
    bomb = gzip.compress(bytes(_BOMB_BYTES))
    while True:
        request = random.choice(_right_requests(model, picture, shape))
        if random.random() < 0.02:
            headers = {**request.headers, "Content-Encoding": "gzip"}
            yield OddRequest("bomb", (replace(request, headers=headers, body=bomb).encoded(),))
            continue
        change = random.choice(_CHANGES)
        data = change(random, request)
        kind = change.__name__.strip("_")
        if random.random() < 0.05:
            at = random.randrange(1, len(data))
            yield OddRequest(f"slow {kind}", (data[:at], data[at:]), pause_s=0.05)
        else:
            yield OddRequest(kind, (data,))


def answer_to(request: OddRequest, host: str, port: int, *, timeout_s: float = 30.0) -> int | None:
    """The status that came, or None where the server closed without one. Raises: TimeoutError where nothing came."""
    with socket.create_connection((host, port), timeout=timeout_s) as client:
        head = b""
        try:
            for index, piece in enumerate(request.pieces):
                if index:
                    time.sleep(request.pause_s)
                client.sendall(piece)
            client.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it answered, and closed, before it had read all
        try:
            while b"\r\n" not in head and (piece := client.recv(1 << 16)):
                head += piece
        except ConnectionError:
            pass
    words = head.split(b" ", 2)
    return int(words[1]) if len(words) == 3 and words[0].startswith(b"HTTP/1.") else None


def _right_requests(model: str, picture: bytes, shape: tuple[int, ...]) -> list[_Request]:
    num_bytes = 4
    for side in shape:
        num_bytes *= side
    tensor = {"name": "images", "shape": list(shape), "datatype": "FP32"}
    binary = {"inputs": [{**tensor, "parameters": {"binary_data_size": num_bytes}}]}
    head = json.dumps(binary).encode()
    numbers = json.dumps({"inputs": [{**tensor, "data": [0.5] * 64}], "outputs": [{"name": "output0"}]}).encode()
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + picture + b"\r\n--b--\r\n"
    detect, infer = f"/v1/models/{model}/detect", f"/v2/models/{model}/infer"
    return [
        _Request("POST", detect, {"Content-Type": "image/png"}, picture),
        _Request("POST", detect, {"Content-Type": "multipart/form-data; boundary=b"}, part),
        _Request("POST", detect, {"Content-Type": "application/json"}, b'{"url": "http://127.0.0.1/a.png"}'),
        _Request("POST", infer, {"Inference-Header-Content-Length": str(len(head))}, head + bytes(num_bytes)),
        _Request("POST", infer, {"Content-Type": "application/json"}, numbers),
        _Request("POST", "/v2/repository/index", {}, b"{}"),
        _Request("GET", f"/v2/models/{model}/versions/1", {}, b""),
        _Request("GET", "/v1/models", {}, b""),
    ]


def _bits_flipped(random: Random, request: _Request) -> bytes:
    return _flipped(random, request.encoded(), random.randrange(1, 20))


def _body_flipped(random: Random, request: _Request) -> bytes:
    return replace(request, body=_flipped(random, request.body, random.randrange(1, 50))).encoded()


def _body_torn(random: Random, request: _Request) -> bytes:
    body = request.body[: random.randrange(len(request.body) + 1)]
    return replace(request, body=body).encoded()


def _torn(random: Random, request: _Request) -> bytes:
    data = request.encoded()
    return data[: random.randrange(1, len(data))]


def _joined(random: Random, request: _Request) -> bytes:
    at = random.randrange(len(request.body) + 1)
    return replace(request, body=request.body[:at] + random.randbytes(random.randrange(2_000))).encoded()


def _packed(random: Random, request: _Request) -> bytes:
    packed = random.choice([gzip.compress(request.body), zlib.compress(request.body), request.body])
    packed = packed[: random.randrange(len(packed) + 1)] if random.random() < 0.5 else packed
    headers = {**request.headers, "Content-Encoding": random.choice(["gzip", "deflate", "br", "gzip, gzip"])}
    return replace(request, headers=headers, body=packed).encoded()


def _typed_wrongly(random: Random, request: _Request) -> bytes:
    return replace(request, headers={**request.headers, "Content-Type": random.choice(_TYPES)}).encoded()


def _header_changed(random: Random, request: _Request) -> bytes:
    headers = {**request.headers, random.choice(_HEADERS): random.choice(_WORDS).replace("\0", "")}
    return replace(request, headers=headers).encoded()


def _length_changed(random: Random, request: _Request) -> bytes:
    length = random.choice(["0", "1", "-1", "x", str(1 << 40), str(max(0, len(request.body) - 1)), "1, 1"])
    return replace(request, headers={**request.headers, "Content-Length": length}).encoded()


def _asked_oddly(random: Random, request: _Request) -> bytes:
    words = [f"{random.choice(_QUERIES)}={random.choice(_WORDS)}" for _ in range(random.randrange(1, 5))]
    query = "&".join(words).replace(" ", "+").replace("\0", "%00")
    return replace(request, path=f"{request.path}?{query}").encoded()


def _elsewhere(random: Random, request: _Request) -> bytes:
    parts = request.path.split("/")
    parts[random.randrange(len(parts))] = random.choice(_WORDS).replace("\0", "%00")
    method = random.choice(["GET", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH", "CONNECT", request.method])
    return replace(request, method=method, path="/".join(parts)).encoded()


def _json_changed(random: Random, request: _Request) -> bytes:
    values: list[Any] = [
        None,
        True,
        -1,
        1 << 70,
        1e308,
        "",
        "FP16",
        [],
        {},
        [[1]],
        {"a": []},
        [1, [2, [3]]],
        "images" * 50,
    ]
    try:
        asked = json.loads(request.body)
    except ValueError:
        return _bits_flipped(random, request)
    place = asked
    while isinstance(place, dict | list) and place and random.random() < 0.7:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = random.choice(keys)
        if random.random() < 0.4 or not isinstance(place[key], dict | list):
            place[key] = random.choice(values)
            break
        place = place[key]
    return replace(request, body=json.dumps(asked).encode()).encoded()


def _noise(random: Random, request: _Request) -> bytes:
    return random.randbytes(random.randrange(1, 400))


def _flipped(random: Random, data: bytes, num_times: int) -> bytes:
    changed = bytearray(data)
    for _ in range(num_times if changed else 0):
        changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed)


_CHANGES: list[Callable[[Random, _Request], bytes]] = [
    _bits_flipped,
    _body_flipped,
    _body_torn,
    _torn,
    _joined,
    _packed,
    _typed_wrongly,
    _header_changed,
    _length_changed,
    _asked_oddly,
    _elsewhere,
    _json_changed,
    _noise,
]

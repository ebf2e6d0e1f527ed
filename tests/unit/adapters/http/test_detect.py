"""Pictures in, objects out; and what is wrong about a request is told precisely."""

from __future__ import annotations

import gzip
import io
import json
import zlib

import pytest
from PIL import Image

from steadyolo.adapters.http.limits import HttpLimits
from steadyolo.serve.service import DeviceFault, Lost, NotReady, Overloaded
from tests.unit.adapters.http.front import Running, picture, running


def form(*files: tuple[str, bytes], field: str = "file") -> tuple[bytes, str]:
    """A multipart body and its type."""
    parts = [
        f'--limit\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
        f"Content-Type: image/png\r\n\r\n".encode()
        + data
        + b"\r\n"
        for name, data in files
    ]
    return b"".join(parts) + b"--limit--\r\n", "multipart/form-data; boundary=limit"


@pytest.mark.parametrize("content_type", ["image/png", "application/octet-stream", "image/x-anything"])
def test_a_picture_is_answered(front: Running, content_type: str) -> None:
    reply = front.detect(picture(48, 32), content_type=content_type)
    assert reply.status == 200
    answer = reply.json
    assert answer["image"] == {"height": 32, "width": 48}
    assert (answer["model"], answer["version"]) == ("small", "0123456789ab")
    assert answer["session"] == "onnxruntime cpu fp32"
    assert len(answer["objects"]) == 4
    assert set(answer["seconds"]) == {"decode", "run"}
    assert "decode;dur=" in reply.headers["server-timing"]


def test_several_files_are_answered_in_their_order(front: Running) -> None:
    body, kind = form(("a.png", picture(48, 32)), ("b.png", picture(20, 10)))
    images = front.detect(body, content_type=kind).json["images"]
    assert [(one["file"], one["image"]["width"]) for one in images] == [("a.png", 48), ("b.png", 20)]


def test_the_bad_one_of_several_files_is_named(front: Running) -> None:
    body, kind = form(("a.png", picture()), ("b.png", b"no picture"))
    reply = front.detect(body, content_type=kind)
    assert (reply.status, reply.json["error"]["code"]) == (400, "bad_image")
    assert reply.json["error"]["message"].startswith("b.png: ")


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_packed_picture_is_unpacked(front: Running, encoding: str) -> None:
    data = picture(300, 200)
    packed = gzip.compress(data) if encoding == "gzip" else zlib.compress(data)
    reply = front.ask("POST", "/v1/models/small/detect", packed, content_type="image/png", content_encoding=encoding)
    assert (reply.status, reply.json["image"]["width"]) == (200, 300)


@pytest.mark.parametrize(
    ("query", "code", "hint"),
    [
        ("?conf=2", "bad_parameter", "from 0 to 1"),
        ("?conf=nan", "bad_parameter", "from 0 to 1"),
        ("?iou=", "bad_parameter", "from 0 to 1"),
        ("?max_det=0", "bad_parameter", "from 1 to"),
        ("?max_det=1_0", "bad_parameter", "from 1 to"),
        ("?classes=a", "bad_parameter", "whole number"),
        ("?agnostic_nms=perhaps", "bad_parameter", "true or false"),
        ("?conf=0.1&conf=0.2", "bad_parameter", "once"),
        ("?max_dets=1", "unknown_parameter", "did you mean max_det?"),
        ("?x=1", "unknown_parameter", "use conf"),
    ],
)
def test_a_wrong_parameter_is_refused(front: Running, query: str, code: str, hint: str) -> None:
    reply = front.detect(picture(), query)
    assert (reply.status, reply.json["error"]["code"]) == (400, code)
    assert hint in reply.json["error"]["remedy"]


def test_right_parameters_reach_the_service(front: Running) -> None:
    reply = front.detect(picture(), "?conf=0&iou=1&max_det=2&classes=0,1&agnostic_nms=True&version=0123456789ab")
    assert len(reply.json["objects"]) == 2


def torn() -> bytes:
    return picture()[:60]


BAD_PICTURES = {
    "no image": b"\x00\x01\x02 not an image",
    "torn": torn(),
    "html": b"<!doctype html><p>hello",
    "huge": b"",  # made below: its header says 30,000 × 30,000
}


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_what_is_no_picture_is_refused(front: Running, kind: str) -> None:
    data = BAD_PICTURES[kind]
    if kind == "huge":
        out = io.BytesIO()
        Image.new("1", (30_000, 30_000)).save(out, "PNG")
        data = out.getvalue()
    reply = front.detect(data)
    assert (reply.status, reply.json["error"]["code"]) == (400, "bad_image")
    assert set(reply.json["error"]) == {"message", "remedy", "code"}


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status", "code"),
    [
        ("POST", "/v1/models/none/detect", {"content-type": "image/png"}, b"x", 404, "no_such_model"),
        ("POST", "/v1/models/small/detect?version=none", {"content-type": "image/png"}, b"x", 404, "no_such_model"),
        ("POST", "/v1/models/small/detect", {"content-type": "text/html"}, b"x", 415, "content_type"),
        ("POST", "/v1/models/small/detect", {"content-type": "image/png"}, b"", 400, "empty"),
        ("POST", "/v1/models/small/detect", {"content-encoding": "br"}, b"x", 415, "content_encoding"),
        ("POST", "/v1/models/small/detect", {"content-encoding": "gzip"}, b"x", 400, "bad_encoding"),
        (
            "POST",
            "/v1/models/small/detect",
            {"content-encoding": "gzip"},
            gzip.compress(b"a")[:-4],
            400,
            "bad_encoding",
        ),
        ("POST", "/v1/models/small/detect", {"content-type": "multipart/form-data"}, b"x", 400, "bad_multipart"),
        ("POST", "/v1/models/small/detect", {"content-type": "application/json"}, b"{}", 403, "url_not_allowed"),
        ("GET", "/v1/models/small/detect", {}, None, 405, "method"),
        ("DELETE", "/v1/models", {}, None, 405, "method"),
        ("GET", "/v1", {}, None, 404, "not_found"),
        ("GET", "/v1/models/a%2Fb/detect", {}, None, 404, "not_found"),
    ],
)
def test_a_wrong_request_is_refused(
    front: Running, method: str, path: str, headers: dict[str, str], body: bytes | None, status: int, code: str
) -> None:
    reply = front.ask(method, path, body, **headers)
    assert (reply.status, reply.json["error"]["code"]) == (status, code)
    assert reply.json["error"]["remedy"]


@pytest.mark.parametrize(
    ("failure", "status", "code", "retry_after"),
    [
        (Overloaded("full", retry_after_s=2.2), 503, "overloaded", "3"),
        (Overloaded("you ask too often", retry_after_s=0.1, is_client=True), 429, "overloaded", "1"),
        (NotReady("warming", retry_after_s=1), 503, "not_ready", "1"),
        (Lost("the worker died", retry_after_s=1), 503, "lost", "1"),
        (TimeoutError(), 504, "late", None),
        (DeviceFault("the device is gone", remedy="restart it"), 500, "fault", None),
        (ZeroDivisionError("secret detail"), 500, "fault", None),
    ],
)
def test_each_error_of_the_service_has_its_status(
    front: Running, failure: Exception, status: int, code: str, retry_after: str | None
) -> None:
    front.service.failure = failure
    reply = front.detect(picture())
    assert (reply.status, reply.json["error"]["code"]) == (status, code)
    assert reply.headers.get("retry-after") == retry_after
    assert b"secret" not in reply.body
    assert front.detect(picture()).status == 200


def test_too_many_files_or_other_fields_are_refused() -> None:
    with running(HttpLimits(num_pictures=2)) as front:
        many, kind = form(*[(f"{index}.png", picture()) for index in range(3)])
        assert front.detect(many, content_type=kind).json["error"]["code"] == "bad_multipart"
        field = b'--limit\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--limit--\r\n'
        assert front.detect(field, content_type=kind).status == 400
        assert front.detect(b"--limit--\r\n", content_type=kind).json["error"]["code"] == "empty"


@pytest.mark.parametrize(
    "body",
    [
        form(("a.png", picture()))[0].removesuffix(b"--limit--\r\n"),
        form(("a.png", picture()), ("b.png", picture()))[0][:-40],
        b"--limit\r\nContent-Disposition: form-data\r\n\r\nx\r\n--limit--\r\n",
        b"--limit\r\n" + b"A: b\r\n" * 1_000 + b"\r\nx\r\n--limit--\r\n",
        b"--limit\r\nContent-Disposition: " + b"a" * 100_000 + b"\r\n\r\nx\r\n--limit--\r\n",
        b"--other\r\n\r\n--other--\r\n",
        b"",
    ],
    ids=["no end", "torn", "no name", "many headers", "a long header", "another boundary", "nothing"],
)
def test_a_malformed_multipart_body_is_refused(front: Running, body: bytes) -> None:
    reply = front.detect(body, content_type="multipart/form-data; boundary=limit")
    assert (reply.status, reply.json["error"]["code"]) == (400, "bad_multipart" if body else "empty")


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [
        (b"\xc3\xa9.png", "", "é.png"),
        (b"\xff.png", "", "\ufffd.png"),
        (b"\\ud800.png", "; charset=unicode_escape", "\\ud800.png"),
        (b"+2AA-.png", "; charset=utf-7", "+2AA-.png"),
        (b"", "", "file 0"),
    ],
)
def test_names_of_files_come_back_whatever_they_are(front: Running, name: bytes, kind: str, told: str) -> None:
    head = b'--limit\r\nContent-Disposition: form-data; name="file"; filename="' + name + b'"\r\n\r\n'
    content_type = f"multipart/form-data; boundary=limit{kind}"
    reply = front.detect(head + picture() + b"\r\n--limit--\r\n", content_type=content_type)
    assert (reply.status, reply.json["images"][0]["file"]) == (200, told)
    wrong = front.detect(head + b"x\r\n--limit--\r\n", content_type=content_type)
    assert (wrong.status, wrong.json["error"]["message"].partition(":")[0]) == (400, told)


def test_what_is_asked_shows_in_the_figures(front: Running) -> None:
    assert front.detect(picture()).status == 200
    assert front.detect(b"x").status == 400
    text = front.ask("GET", "/metrics").body.decode()
    for line in (
        'steadyolo_requests_total{code="200",method="POST",route="/v1/models/{name}/detect"}',
        'steadyolo_requests_total{code="400",method="POST",route="/v1/models/{name}/detect"}',
        'steadyolo_stage_seconds_count{model="small",stage="run"}',
        'steadyolo_pictures_total{model="small",session="onnxruntime cpu fp32",version="0123456789ab"}',
        'steadyolo_model_info{model="small",session="onnxruntime cpu fp32",version="0123456789ab"} 1.0',
        'steadyolo_model_state{model="small",state="ready"} 1.0',
        'steadyolo_worker_bytes{worker="plain"} 1000.0',
        "steadyolo_ready 1.0",
        "steadyolo_queued 0.0",
        "# TYPE steadyolo_restarts_total counter",
        'steadyolo_model_warm_seconds{model="small"} 0.0123',
        "steadyolo_batch_images 1.0",
        "process_resident_memory_bytes",
    ):
        assert line in text, line


def test_health_tells_live_from_ready(front: Running) -> None:
    assert front.ask("GET", "/healthz").json == {"live": True}
    assert front.ask("GET", "/readyz").json == {"ready": True}
    front.ask("POST", "/v2/repository/models/small/unload")
    assert front.ask("GET", "/healthz").status == 200
    reply = front.ask("GET", "/readyz")
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")
    assert "small is unloaded" in reply.json["error"]["message"]
    front.ask("POST", "/v2/repository/models/small/load")
    front.app.health.is_front_ready = False
    assert front.ask("GET", "/readyz").status == 503
    assert front.ask("GET", "/v1/models").json["ready"] is False
    assert b"steadyolo_ready 0.0" in front.ask("GET", "/metrics").body
    front.app.health.is_front_ready = True
    assert front.ask("GET", "/readyz").status == 200


def test_pages_need_nothing_from_elsewhere(front: Running) -> None:
    for path in ("/", "/docs"):
        reply = front.ask("GET", path)
        assert reply.status == 200
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert "'sha256-" in reply.headers["content-security-policy"]
        assert b"http://" not in reply.body and b"https://" not in reply.body
    document = json.loads(front.ask("GET", "/openapi.json").body)
    asked = {route.path for route in front.app._routes} - {"/", "/docs", "/openapi.json"}
    assert set(document["paths"]) == asked

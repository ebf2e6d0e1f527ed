"""`steadyolo serve` as its users meet it: a real process, a real model, real clients."""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

from steadyolo.serve.served_model import ServedModel
from steadyolo.testing.odd_requests import answer_to, odd_requests
from tests.served import SIDE_PX
from tests.serving import Server, command, serving, until
from tests.style.test_documents import blocks, shell_lines
from tests.style.tree import ROOT


@pytest.fixture(scope="module")
def server(served: Callable[..., ServedModel], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = served("detect").folder
    with serving(tmp_path_factory.mktemp("server"), f"small={folder}", "--max-body", "8MiB") as one:
        yield one


def encoded(picture: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    bands = len(mode) if mode != "L" else 1
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, bands), np.uint8)
    return Image.fromarray(pixels.squeeze(2) if bands == 1 else pixels, mode)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter
    return encoded(noise(40, 20), "JPEG", exif=exif)


def sixteen_bit() -> bytes:
    return encoded(Image.fromarray(np.random.default_rng(1).integers(0, 65536, (20, 40), np.uint16)), "PNG")


GOOD = {
    "JPEG": (lambda: encoded(noise(40, 20), "JPEG"), (20, 40)),
    "1×1": (lambda: encoded(noise(1, 1), "PNG"), (1, 1)),
    "CMYK": (lambda: encoded(noise(40, 20, "CMYK"), "JPEG"), (20, 40)),
    "grey": (lambda: encoded(noise(40, 20, "L"), "PNG"), (20, 40)),
    "transparent": (lambda: encoded(noise(40, 20, "RGBA"), "PNG"), (20, 40)),
    "16 bits": (sixteen_bit, (20, 40)),
    "turned by EXIF": (turned, (40, 20)),
    "WebP": (lambda: encoded(noise(40, 20), "WEBP"), (20, 40)),
    "TIFF": (lambda: encoded(noise(40, 20), "TIFF"), (20, 40)),
    "30,000 × 1": (lambda: encoded(noise(30_000, 1), "PNG"), (1, 30_000)),
}
BAD = {
    "nothing of a picture": lambda: b"hello, this is no picture",
    "torn": lambda: encoded(noise(200, 200), "PNG")[:500],
    "only a head": lambda: encoded(noise(200, 200), "JPEG")[:20],
    "30,000 × 30,000": lambda: encoded(Image.new("1", (30_000, 30_000)), "PNG"),
    "a script": lambda: b"#!/bin/sh\necho hello\n",
}


@pytest.mark.parametrize("kind", GOOD)
def test_pictures_of_every_kind_are_answered(server: Server, kind: str) -> None:
    make, size = GOOD[kind]
    reply = server.detect(make())
    assert reply.status == 200, reply.body
    answer = reply.json
    assert (answer["image"]["height"], answer["image"]["width"]) == size
    assert answer["session"].split()[1] == "cpu"
    assert {"decode", "run", "finish"} <= set(answer["seconds"])


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_of_an_animated_picture_the_first_is_taken_or_it_is_refused(server: Server, form: str) -> None:
    frames = [noise(40, 20), Image.new("RGB", (40, 20))]
    reply = server.detect(encoded(frames[0], form, save_all=True, append_images=frames[1:]))
    assert reply.status == 200 or (reply.status == 400 and reply.json["error"]["code"] == "bad_image"), reply.body


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_picture_is_refused(server: Server, kind: str) -> None:
    reply = server.detect(BAD[kind]())
    assert (reply.status, reply.json["error"]["code"]) == (400, "bad_image")
    assert reply.json["error"]["remedy"]


def test_objects_are_as_the_detector_finds_them(server: Server, served: Callable[..., ServedModel]) -> None:
    golden = (served("detect").folder / "golden.png").read_bytes()
    objects = server.detect(golden, "?conf=0.01").json["objects"]
    assert objects, "nothing was found, so this proves nothing"
    for one in objects:
        assert set(one) == {"name", "class", "confidence", "box"}
        assert set(one["box"]) == {"x1", "y1", "x2", "y2"}
    few = server.detect(golden, "?conf=0.01&max_det=1").json["objects"]
    assert few == objects[:1]
    wanted = objects[0]["class"]
    assert {one["class"] for one in server.detect(golden, f"?conf=0.01&classes={wanted}").json["objects"]} == {wanted}


def test_tritons_client_works_unchanged(server: Server, served: Callable[..., ServedModel]) -> None:
    from steadyolo.adapters.runtimes.opening import open_session
    from steadyolo.serve.session import SessionSettings

    model = served("detect")
    images = np.random.default_rng(0).random((1, 3, SIDE_PX, SIDE_PX), np.float32)
    expected = open_session(model, SessionSettings(num_threads=1)).run(images)[0]
    client = triton.InferenceServerClient(server.address)
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("small", model.version)
    about = client.get_model_metadata("small")
    assert about["versions"] == [model.version]
    assert [one["name"] for one in about["outputs"]] == list(model.outputs)
    for binary in (True, False):
        given = triton.InferInput("images", list(images.shape), "FP32")
        given.set_data_from_numpy(images, binary_data=binary)
        wanted = [triton.InferRequestedOutput("output0", binary_data=binary)]
        answer = client.infer("small", [given], outputs=wanted, model_version=model.version)
        np.testing.assert_allclose(answer.as_numpy("output0"), expected, atol=1e-3 * np.abs(expected).max())
    with pytest.raises(InferenceServerException) as raised:
        client.infer("none", [given])
    assert raised.value.status() == "404"
    client.close()


def test_what_the_document_tells_to_type_works(served: Callable[..., ServedModel], tmp_path: Path) -> None:
    document = ROOT / "docs" / "serving.md"
    (tmp_path / "board.jpg").write_bytes(encoded(noise(60, 40), "JPEG"))
    with serving(tmp_path, f"best={served('detect').folder}") as server:
        asked = [line for line in shell_lines(document) if line.startswith("curl ")]
        for line in asked:
            line = line.replace("127.0.0.1:8000", server.address)
            done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, (line, done.stderr)
            assert '"model' in done.stdout
        for code in blocks(document, "python"):
            code = code.replace("127.0.0.1:8000", server.address)
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            assert done.stdout.startswith("(1, ")
    assert len(asked) == 3


def test_a_shape_that_the_graph_does_not_take_is_refused(server: Server) -> None:
    client = triton.InferenceServerClient(server.address)
    images = np.zeros((1, 3, SIDE_PX + 1, SIDE_PX), np.float32)
    given = triton.InferInput("images", list(images.shape), "FP32")
    given.set_data_from_numpy(images)
    with pytest.raises(InferenceServerException) as raised:
        client.infer("small", [given])
    assert raised.value.status() == "400"
    client.close()


def test_odd_requests_harm_nothing(server: Server) -> None:
    kind, shape = encoded(noise(60, 40), "JPEG"), (1, 3, SIDE_PX, SIDE_PX)
    for request in islice(odd_requests(11, model="small", picture=kind, shape=shape), 200):
        status = answer_to(request, "127.0.0.1", server.port)
        assert status is None or status < 500, f"{status} for {request.kind}"
    assert server.detect(kind).status == 200
    figures = server.ask("GET", "/metrics").body.decode()
    assert "steadyolo_restarts_total 0.0" in figures


@pytest.mark.campaign
def test_ten_thousand_odd_requests_leave_memory_as_it_was(server: Server) -> None:
    seed = int(os.environ.get("STEADYOLO_CAMPAIGN_SEED", "0"))
    picture, shape = encoded(noise(60, 40), "JPEG"), (1, 3, SIDE_PX, SIDE_PX)
    before_bytes = 0
    for index, request in enumerate(islice(odd_requests(seed, model="small", picture=picture, shape=shape), 10_000)):
        status = answer_to(request, "127.0.0.1", server.port)
        assert status is None or status < 500, f"{status} for {request.kind}"
        if index == 2_000:
            before_bytes = server.resident_bytes()
    assert server.resident_bytes() - before_bytes < 32 << 20
    assert server.detect(picture).status == 200


def test_ready_is_said_only_when_it_is_true(served: Callable[..., ServedModel], tmp_path: Path) -> None:
    golden = (served("detect").folder / "golden.png").read_bytes()
    with serving(tmp_path, f"small={served('detect').folder}", ready=False) as server:
        seen: list[int] = []
        while not seen or seen[-1] != 200:
            assert server.ask("GET", "/healthz").status == 200
            early = server.detect(golden)
            seen.append(server.ask("GET", "/readyz").status)
            if seen[-1] != 200 and early.status != 200:
                assert (early.status, early.json["error"]["code"]) == (503, "not_ready")
                assert int(early.headers["retry-after"]) >= 1
        assert server.detect(golden).status == 200
        assert set(seen) == {200, 503}, "it was never seen loading, so this proves nothing"
        server.wait_ready()
        assert f"small {served('detect').version} on " in server.lines[-1]


class Load:
    """Clients that ask one after the other, each on connections of their own, until none can be made."""

    def __init__(self, server: Server, picture: bytes, num_clients: int = 6) -> None:
        self.num_answered, self.num_refused, self.num_lost = 0, 0, 0
        self._port, self._picture = server.port, picture
        self._threads = [threading.Thread(target=self._ask) for _ in range(num_clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        length = len(self._picture)
        head = f"POST /v1/models/small/detect HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {length}"
        while True:
            try:
                client = socket.create_connection(("127.0.0.1", self._port), timeout=30)
            except OSError:
                self.num_refused += 1
                return
            with client:
                try:
                    client.sendall(head.encode() + b"\r\n\r\n" + self._picture)
                    is_answered = client.recv(1 << 16).startswith(b"HTTP/1.1 200")
                except OSError:
                    is_answered = False
            self.num_answered += is_answered
            self.num_lost += not is_answered

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


def test_a_signal_under_load_loses_no_accepted_request(served: Callable[..., ServedModel], tmp_path: Path) -> None:
    golden = (served("detect").folder / "golden.png").read_bytes()
    with serving(tmp_path, f"small={served('detect').folder}", "--grace", "1", "--timeout", "30") as server:
        load = Load(server, golden)
        until(lambda: load.num_answered > 20)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.ask("GET", "/readyz").status == 503, 0.9)
        before = load.num_answered
        assert server.process.wait(30) == 0
        load.join()
    assert not load.num_lost
    assert load.num_answered > before, "nothing was under way, so this proves nothing"
    assert load.num_refused, "it never stopped listening"


def test_an_end_without_draining_loses_requests(served: Callable[..., ServedModel], tmp_path: Path) -> None:
    golden = (served("detect").folder / "golden.png").read_bytes()
    with serving(tmp_path, f"small={served('detect').folder}", "--timeout", "30") as server:
        load = Load(server, golden)
        until(lambda: load.num_answered > 20)
        server.process.kill()
        load.join()
    assert load.num_lost


def test_a_second_signal_ends_it_at_once(served: Callable[..., ServedModel], tmp_path: Path) -> None:
    with serving(tmp_path, f"small={served('detect').folder}", "--grace", "60", "--drain", "60") as server:
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.ask("GET", "/readyz").status == 503)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 1


def refusal(*words: str | Path) -> str:
    """What a server says that does not start because of what was asked."""
    done = subprocess.run(command(*words), capture_output=True, text=True, timeout=60)
    assert done.returncode in (1, 2), done
    assert "Traceback" not in done.stderr, done.stderr
    assert "error: " in done.stderr and "remedy: " in done.stderr
    return done.stderr


def test_weights_are_refused_with_the_command_that_exports_them(weights: Callable[..., Path], tmp_path: Path) -> None:
    path = shutil.copy(weights("detect"), tmp_path / "best.pt")
    assert f"steadyolo export {path}" in refusal(path, "--port", "0")


def test_a_port_in_use_is_told(served: Callable[..., ServedModel]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        started = time.monotonic()
        assert f"port {port} of 127.0.0.1 is in use" in refusal(served("detect").folder, "--port", port)
        assert time.monotonic() - started < 3


def test_a_model_larger_than_the_budget_is_told(served: Callable[..., ServedModel]) -> None:
    assert "1.0 KiB" in refusal(served("detect").folder, "--port", "0", "--budget", "1KiB")


def test_a_damaged_model_is_told(served: Callable[..., ServedModel], tmp_path: Path) -> None:
    folder = shutil.copytree(served("detect").folder, tmp_path / "small.served")
    graph = folder / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    assert "was changed since it was exported" in refusal(folder, "--port", "0")


@pytest.mark.parametrize("words", [["nowhere.served"], ["a=x", "a=y"], ["x.served", "--host", "203.0.113.1"]])
def test_what_cannot_be_served_is_told(words: list[str]) -> None:
    refusal(*words, "--port", "0")


def test_tokens_of_the_environment_count(served: Callable[..., ServedModel], tmp_path: Path) -> None:
    token = "an-environments-token"
    with serving(tmp_path, f"small={served('detect').folder}", STEADYOLO_TOKENS=token) as server:
        assert server.ask("GET", "/v1/models").status == 401
        assert server.ask("GET", "/v1/models", authorization=f"Bearer {token}").status == 200
        import psutil

        for process in psutil.Process(server.process.pid).children(recursive=True):
            assert token not in "".join(process.environ().values())
        assert token not in server.log.read_text()


def test_systemd_is_told(served: Callable[..., ServedModel], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.settimeout(20)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000"}
        with serving(tmp_path, f"small={served('detect').folder}", **environment) as server:
            assert supervisor.recv(100) == b"READY=1"
            assert [supervisor.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            server.process.send_signal(signal.SIGSTOP)  # the event loop turns no more
            supervisor.settimeout(0.1)
            while True:
                try:
                    supervisor.recv(100)
                except TimeoutError:
                    break
            supervisor.settimeout(0.5)
            with pytest.raises(TimeoutError):
                supervisor.recv(100)
            server.process.send_signal(signal.SIGCONT)
            server.process.send_signal(signal.SIGTERM)
            supervisor.settimeout(20)
            while (told := supervisor.recv(100)) == b"WATCHDOG=1":
                pass
            assert told == b"STOPPING=1"


def test_listening_waits_for_nothing_heavy() -> None:
    heavy = "{'torch', 'ultralytics', 'openvino', 'onnxruntime', 'cv2', 'numpy', 'rich', 'typer', 'boto3', 'pydantic'}"
    program = (
        "import sys, steadyolo.cli.main, steadyolo.cli.serve, steadyolo.adapters.http.server, "
        f"steadyolo.serve.warm_service, steadyolo.cli.models; print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"

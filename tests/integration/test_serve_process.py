"""The process of `steadyolo serve`: what surrounds it is odd, and it serves all the same, or says why not."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from steadyolo.serve.served_model import ServedModel
from tests.serving import Server, command, serving, until


@pytest.fixture
def words(served: Callable[..., ServedModel]) -> tuple[str, ...]:
    return (f"small={served('detect').folder}",)


def golden(served: Callable[..., ServedModel]) -> bytes:
    return (served("detect").folder / "golden.png").read_bytes()


def test_a_hangup_ends_it_in_order_and_a_missing_supervisor_is_no_reason_to(
    served: Callable[..., ServedModel], words: tuple[str, ...], tmp_path: Path
) -> None:
    with serving(tmp_path, *words, "--grace", "0", NOTIFY_SOCKET=str(tmp_path / "none"), WATCHDOG_USEC="x") as server:
        assert server.detect(golden(served)).status == 200
        server.process.send_signal(signal.SIGHUP)
        assert server.process.wait(20) == 0
        assert "was not told READY=1" in server.log.read_text()


def test_a_load_is_answered_when_it_is_warm_and_the_choice_is_shown(words: tuple[str, ...], tmp_path: Path) -> None:
    with serving(tmp_path, *words, ready=False) as server:
        assert server.ask("GET", "/v2/models/small/ready").status == 503, "it is warm already, so this proves nothing"
        assert server.ask("POST", "/v2/repository/models/small/load").status == 200
        assert server.ask("GET", "/v2/models/small/ready").status == 200
        server.wait_ready()
        model = server.ask("GET", "/v1/models").json["models"][0]
        assert model["warm_ms"] > 0
        assert f"on {model['session']}, {model['warm_ms']:.1f} ms;" in server.lines[-1]


def test_an_unload_answers_what_was_accepted_and_a_load_counts_again(
    served: Callable[..., ServedModel], words: tuple[str, ...], tmp_path: Path
) -> None:
    with serving(tmp_path, *words, "--timeout", "20") as server, ThreadPoolExecutor(12) as clients:
        picture = encoded_noise(2_500)  # takes long to decode, so that others wait
        asked = [clients.submit(server.detect, picture) for _ in range(12)]
        until(lambda: waiting(server) > 2)
        assert server.ask("POST", "/v2/repository/models/small/unload").status == 200
        assert server.detect(golden(served)).status == 503
        statuses = Counter(one.result().status for one in asked)
        assert statuses[200] > 2 and set(statuses) <= {200, 503}, statuses  # who was refused had not been accepted yet
        assert server.ask("GET", "/v1/models").json["models"][0]["required"] is False
        assert server.ask("POST", "/v2/repository/models/small/load").status == 200
        assert server.ask("GET", "/v1/models").json["models"][0]["required"] is True
        assert server.detect(golden(served)).status == 200


def waiting(server: Server) -> float:
    line = next(one for one in server.ask("GET", "/metrics").body.split(b"\n") if one.startswith(b"steadyolo_queued "))
    return float(line.split()[1])


def encoded_noise(side_px: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (side_px, side_px), np.uint8)
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


def asked_as(server: Server, address: str, body: bytes) -> int:
    return server.ask("POST", "/v1/models/small/detect", body, content_type="image/png", x_forwarded_for=address).status


def test_only_a_named_proxy_says_who_asks(
    served: Callable[..., ServedModel], words: tuple[str, ...], tmp_path: Path
) -> None:
    limits = (*words, "--rate", "0.001", "--burst", "2")
    with serving(tmp_path, *limits) as server:
        assert [asked_as(server, f"10.0.0.{index}", golden(served)) for index in range(3)] == [200, 200, 429]
    with serving(tmp_path, *limits, "--proxy", "127.0.0.1") as server:
        assert [asked_as(server, f"10.0.0.{index}", golden(served)) for index in range(3)] == [200, 200, 200]
        assert [asked_as(server, "10.0.0.0", golden(served)) for _ in range(2)] == [200, 429]


def test_few_files_may_be_open_and_it_goes_on(
    served: Callable[..., ServedModel], words: tuple[str, ...], tmp_path: Path
) -> None:
    with serving(tmp_path, *words, files=100) as server, ExitStack() as open_ones:
        for _ in range(150):
            open_ones.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=5))
        started = time.monotonic()
        assert server.detect(golden(served)).status == 200
        assert time.monotonic() - started < 2
        num_open = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
        assert 50 < num_open <= 100, "it never came near its limit, so this proves nothing"


@pytest.mark.parametrize(
    "words",
    [("--port", "99999"), ("--port", "-1"), ("--runtime", "none"), ("--grace", "nan"), ("--batch-wait", "-1")],
    ids=" ".join,
)
def test_what_cannot_be_is_told(words: tuple[str, ...]) -> None:
    done = subprocess.run(command("any.served", *words), capture_output=True, text=True, timeout=60)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert words[1] in done.stderr


def test_an_interrupt_before_it_serves_is_no_fault() -> None:
    program = (
        "import os, signal, sys, steadyolo.cli.main as main, steadyolo.cli.serve as serve\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # whoever runs this test may have it ignored
        "serve.listen = lambda *_: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.argv = ['steadyolo', 'serve', 'any.served']\n"
        "main.run()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "")


def test_who_started_it_may_stop_to_listen(words: tuple[str, ...], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command(*words, "--port", "0", "--grace", "0"), stdout=writing, stderr=log)
        os.close(writing)
        try:
            line = os.read(reading, 1_000)
            os.close(reading)
            assert line.startswith(b"live: ")
            port = int(line.partition(b"127.0.0.1:")[2].partition(b",")[0])
            until(lambda: is_ready(port))
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
    assert not (tmp_path / "log").read_bytes()


def is_ready(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
        return client.recv(100).startswith(b"HTTP/1.1 200")

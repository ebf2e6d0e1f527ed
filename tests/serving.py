"""A real `steadyolo serve` on a free port of this machine, and requests to it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

START_LIMIT_S = 60.0
ONE_THREAD = ("--threads", "1")  # tests share the machine


@dataclass
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Server:
    """A server process that answers; `lines` are what it said so far."""

    process: subprocess.Popen[str]
    port: int
    lines: list[str]
    log: Path

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): text for name, text in headers.items()})
            answer = connection.getresponse()
            return Reply(answer.status, {name.lower(): text for name, text in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def detect(self, body: bytes, query: str = "", model: str = "small") -> Reply:
        return self.ask("POST", f"/v1/models/{model}/detect{query}", body, content_type="application/octet-stream")

    def wait_ready(self) -> None:
        """Returns with the line that says so."""
        assert self.process.stdout
        self.lines.append(self.process.stdout.readline())
        assert self.lines[-1].startswith("ready: "), [*self.lines, self.log.read_text()]

    def resident_bytes(self) -> int:
        """Of the server and its workers."""
        import psutil

        front = psutil.Process(self.process.pid)
        return sum(one.memory_info().rss for one in (front, *front.children(recursive=True)))


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "steadyolo.cli.main", "serve", *map(str, words)]


@contextmanager
def serving(
    folder: Path, *words: str | Path, ready: bool = True, files: int | None = None, **environment: str
) -> Iterator[Server]:
    """`steadyolo serve WORDS`, live and, where asked for, ready; ended with the block. Its log is in `folder`.

    It may open so many `files`.
    """
    log = folder / "serve.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [
                *(["prlimit", f"--nofile={files}:{files}"] if files else []),
                *command(*words, "--port", "0", *ONE_THREAD),
            ],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **environment},
            preexec_fn=partial(signal.signal, signal.SIGHUP, signal.SIG_DFL),  # whoever runs the tests may ignore it
        )
    try:
        assert process.stdout
        line = process.stdout.readline()
        found = re.match(r"live: http://127\.0\.0\.1:(\d+), ", line)
        assert found, [line, log.read_text()]
        server = Server(process, int(found[1]), [line], log)
        if ready:
            server.wait_ready()
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until(condition: Any, timeout_s: float = 20.0) -> None:
    ends_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_at, "it did not come to pass"
        time.sleep(0.02)

"""What the benches of serving share: a served model and its source, a server as users start it, and a small client."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import side_by_side as bench

START_TIMEOUT_S = 120.0
UNREACHABLE, CUT_SHORT = -1, 0
STEADYOLO = [sys.executable, "-m", "steadyolo.cli.main"]


@dataclass(frozen=True, slots=True)
class Subject:
    """A trained model as both sides take it, and images to send."""

    weights: Path
    served: Path
    side_px: int
    images: tuple[Path, ...]

    @property
    def name(self) -> str:
        return self.served.name.removesuffix(".served")


def subject(args: object, out: Path) -> Subject:
    """The model of `--weights`, or one that is trained here in some minutes; exported once and kept in `out`."""
    weights: Path | None = args.weights  # type: ignore[attr-defined]
    side_px: int = args.imgsz  # type: ignore[attr-defined]
    data = bench.data_set(args.data, out)  # type: ignore[attr-defined]
    if weights is None:
        weights = out / "runs" / "served-source" / "weights" / "best.pt"
        if not weights.is_file():
            bench.say("training a model to serve")
            told = {"data": data, "model": "yolov8n.yaml", "epochs": 30, "imgsz": 320, "batch": 16, "plots": False}
            told |= {"project": out / "runs", "name": "served-source", "optimizer": "AdamW", "lr0": 0.002, "seed": 0}
            run([*STEADYOLO, "train", *(f"{name}={value}" for name, value in told.items())], out)
    served = out / f"{weights.parent.parent.name or 'model'}-{side_px}.served"
    if not (served / "manifest.json").is_file():
        bench.say(f"exporting {weights.name} at {side_px} px")
        run([*STEADYOLO, "export", str(weights), f"imgsz={side_px}", f"out={served}"], out)
    images = sorted((data.parent / "images" / "val").glob("*.jpg"))
    return Subject(weights.resolve(), served, side_px, tuple(images))


def run(command: Sequence[str], out: Path) -> None:
    """Run a command to its end. Raises: SystemExit with what it said where it fails."""
    done = subprocess.run(command, env=bench.environment(out), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(command: Sequence[str], out: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process group of its own, ended with its children; its output is in `<name>.log`."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=bench.environment(out), process_group=0
        )
        try:
            yield process
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                if process.poll() is None:
                    os.killpg(process.pid, number)
                    try:
                        process.wait(20)
                    except subprocess.TimeoutExpired:
                        continue


def steadyolo_serve(subject: Subject, port: int, *more: str) -> list[str]:
    """The command that users type."""
    return [*STEADYOLO, "serve", str(subject.served), "--port", str(port), *more]


@dataclass(slots=True)
class Client:
    """One connection that is kept open. Opens it anew where the server closed it."""

    port: int
    path: str
    timeout_s: float = 30.0
    connection: http.client.HTTPConnection | None = None

    def post(self, body: bytes, kind: str = "image/jpeg") -> tuple[int, bytes]:
        """Status and body of the answer. Raises: OSError, HTTPException where there is none."""
        connection = self.connection or self.connect()
        try:
            connection.request("POST", self.path, body, {"Content-Type": kind})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            self.close()
            raise

    def timed(self, body: bytes, kind: str = "image/jpeg") -> tuple[float, int]:
        """Seconds from the first byte sent to the last one received, and the status.

        Hardly any of it is work of this side, which may have slept for a minute and is not what is measured.
        """
        connection = self.connection or self.connect()
        head = f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\n"
        request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        began = time.perf_counter()
        connection.sock.sendall(request)
        data = connection.sock.recv(1 << 20)
        took = time.perf_counter() - began
        head_text, _, rest = data.partition(b"\r\n\r\n")
        length = int(head_text.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(rest) < length:
            rest += connection.sock.recv(1 << 20)
            took = time.perf_counter() - began
        return took, int(head_text.split()[1])

    def connect(self) -> http.client.HTTPConnection:
        """Open the connection."""
        self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout_s)
        self.connection.connect()  # which sets TCP_NODELAY
        return self.connection

    def ask(self, body: bytes, kind: str = "image/jpeg") -> tuple[int, bytes]:
        """As `post`; the status is `UNREACHABLE` where nobody listens, `CUT_SHORT` where a request got no answer."""
        try:
            return self.post(body, kind)
        except ConnectionRefusedError:
            return UNREACHABLE, b""
        except (OSError, http.client.HTTPException):
            return CUT_SHORT, b""

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def wait_for_answer(client: Client, body: bytes, process: subprocess.Popen[bytes]) -> bytes:
    """The first answer with status 200, asked for every 5 ms."""
    return wait_for(lambda: client.post(body), process)


def wait_until_ready(port: int, process: subprocess.Popen[bytes], path: str = "/v2/health/ready") -> None:
    """Return when the server says that it is ready, asked every 5 ms."""

    def asked() -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    wait_for(asked, process)


def wait_for(ask: Callable[[], tuple[int, bytes]], process: subprocess.Popen[bytes]) -> bytes:
    """What `ask` answers once its status is 200. Raises: SystemExit where the server ends or is late."""
    began = time.monotonic()
    while time.monotonic() - began < START_TIMEOUT_S:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with exit code {process.returncode}")
        try:
            status, body = ask()
        except (OSError, http.client.HTTPException):
            status, body = 0, b""
        if status == 200:
            return body
        time.sleep(0.005)
    raise SystemExit(f"no answer within {START_TIMEOUT_S:.0f} s")


@dataclass(slots=True)
class Load:
    """What clients saw, one entry an answer: when it was asked for, how long it took, and its status."""

    at_s: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    elapsed_s: float = 0.0

    def add(self, at_s: float, seconds: float, status: int) -> None:
        """One more answer."""
        self.at_s.append(at_s)
        self.seconds.append(seconds)
        self.status.append(status)

    def of(self, *wanted: int) -> list[float]:
        """How long answers with these statuses took."""
        return [one for one, status in zip(self.seconds, self.status, strict=True) if status in wanted]

    def told(self) -> bench.Json:
        """As figures."""
        accepted, rejected = self.of(200), self.of(429, 503)
        return {
            "accepted": len(accepted),
            "rejected": len(rejected),
            "failed": len(self.status) - len(accepted) - len(rejected),
            "per_second": bench.round_off(len(accepted) / self.elapsed_s),
            **_percentiles("", accepted),
            **_percentiles("reject_", rejected),
        }


def _percentiles(prefix: str, seconds: Sequence[float]) -> bench.Json:
    if not seconds:
        return {}
    return {f"{prefix}p{share}_ms": _ms(bench.percentile(seconds, share / 100)) for share in (50, 99)}


def _ms(seconds: float) -> float:
    return bench.round_off(1000 * seconds, 4)


def closed_loop(
    port: int,
    path: str,
    bodies: Sequence[bytes],
    *,
    clients: int,
    seconds: float,
    kind: str = "image/jpeg",
    stop: threading.Event | None = None,
    ends_with_server: bool = False,
    on_answer: Callable[[bytes], object] = len,
) -> Load:
    """`clients` connections, each of which asks again as soon as it was answered, for `seconds` or until `stop`.

    With `ends_with_server` a client ends once it is turned away, as it is told to by a server that is going.
    `on_answer` is given the body of each answer with status 200.
    """
    load, lock, began = Load(), threading.Lock(), time.monotonic()
    halt = stop or threading.Event()

    def one(index: int) -> None:
        client = Client(port, path)
        number = index
        while time.monotonic() - began < seconds and not halt.is_set():
            at = time.monotonic()
            status, answer = client.ask(bodies[number % len(bodies)], kind)
            with lock:
                load.add(at - began, time.monotonic() - at, status)
            if status == 200:
                on_answer(answer)
            if ends_with_server and status in (UNREACHABLE, 503):
                break
            number += clients
            if status != 200:
                halt.wait(0.01)
        client.close()

    _in_threads(one, clients)
    load.elapsed_s = time.monotonic() - began
    return load


def open_loop(
    port: int, path: str, bodies: Sequence[bytes], *, per_second: float, seconds: float, clients: int = 64
) -> Load:
    """Requests at a steady rate whether or not answers come, as many users make them; at most `clients` at once."""
    load, lock, began = Load(), threading.Lock(), time.monotonic() + 0.1
    numbers = iter(range(int(per_second * seconds)))

    def one(_: int) -> None:
        client = Client(port, path)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                break
            time.sleep(max(0.0, began + number / per_second - time.monotonic()))
            at = time.monotonic()
            status, _ = client.ask(bodies[number % len(bodies)])
            with lock:
                load.add(at - began, time.monotonic() - at, status)
        client.close()

    _in_threads(one, clients)
    load.elapsed_s = time.monotonic() - began
    return load


def _in_threads(work: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def boxes_of(summary: Sequence[bench.Json]) -> list[tuple[int, float, list[float]]]:
    """Class, confidence and corners of each object of a summary, the surest first."""
    found = [
        (one["class"], one["confidence"], [one["box"][side] for side in ("x1", "y1", "x2", "y2")]) for one in summary
    ]
    return sorted(found, key=lambda one: -one[1])


def same_boxes(ours: Sequence[bench.Json], theirs: Sequence[bench.Json], *, sure: float = 0.35) -> bool:
    """True where each object that one side is sure of has one of the other with the same class that covers it."""

    def covered(some: Sequence[bench.Json], others: Sequence[bench.Json]) -> bool:
        return all(
            any(kind == other_kind and iou(box, other_box) > 0.85 for other_kind, _, other_box in boxes_of(others))
            for kind, confidence, box in boxes_of(some)
            if confidence >= sure
        )

    return covered(ours, theirs) and covered(theirs, ours)


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes given by corners."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(width, 0.0) * max(height, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return common / (areas - common) if areas > common else 0.0


def summary_in(line: str) -> list[bench.Json]:
    """The objects that a child printed as JSON."""
    found: list[bench.Json] = json.loads(line)
    return found

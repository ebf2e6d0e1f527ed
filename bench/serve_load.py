"""Serving under load: latency, throughput, swaps, overload and an orderly end, beside what people use.

- *latency*: one frame after the other in one process, `Detector(model)(image)` beside `YOLO(pt)(image)`, alternating.
- *throughput* over HTTP with 1, 4 and 16 clients: `steadyolo serve`, LitServe and a plain threaded server; the latter
  two answer with Ultralytics' predictor on the same ONNX file.
- *swaps*: new versions, some of them corrupt, put into a watched folder under load.
- *overload*: three times what the server can do, then little again.
- *term*: SIGTERM under load.

The last line is JSON; `ratio` is theirs / ours of the latency.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import statistics
import sys
import threading
import time
from pathlib import Path

import serving
import side_by_side as bench

PARTS = ("latency", "throughput", "swaps", "overload", "term")
CLIENTS = (1, 4, 16)
NUM_FRAMES = 200
SWAP_LIMIT_S, SWAPS_LIMIT_S = 60.0, 3600.0
LITSERVE = """
import sys, cv2, litserve, numpy
from ultralytics import YOLO

class Detect(litserve.LitAPI):
    def setup(self, device):
        self.model = YOLO(sys.argv[1], task="detect")
    def decode_request(self, request):
        return cv2.imdecode(numpy.frombuffer(request["image"].file.read(), numpy.uint8), 1)
    def predict(self, image):
        return self.model(image, imgsz=int(sys.argv[3]), verbose=False)[0].summary()
    def encode_response(self, found):
        return {"objects": found}

if __name__ == "__main__":
    server = litserve.LitServer(Detect(), accelerator="cpu")
    server.run(port=int(sys.argv[2]), host="127.0.0.1", generate_client_file=False)
"""
PLAIN = """
import json, sys, threading, cv2, numpy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ultralytics import YOLO

model, lock = YOLO(sys.argv[1], task="detect"), threading.Lock()
side_px = int(sys.argv[3])

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        image = cv2.imdecode(numpy.frombuffer(body, numpy.uint8), 1)
        with lock:
            found = model(image, imgsz=side_px, verbose=False)[0].summary()
        answer = json.dumps({"objects": found}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
    def log_message(self, *_): ...

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""


def main() -> None:
    """Parent."""
    parser = bench.arguments(__doc__, repeats=3)
    parser.add_argument("--weights", type=Path, help="a .pt (else one is trained in some minutes)")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--seconds", type=float, default=10.0, help="of load, each time")
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    args = parser.parse_args()
    if args.quick:
        args.repeats, args.seconds, args.swaps = 1, 2.0, 4
    out = args.out / "serve_load"
    subject = serving.subject(args, out)
    found = {part: globals()[f"_{part}"](subject, args, out) for part in args.parts}
    latency = found.get("latency")
    bench.finish(
        "serve_load",
        ours={part: one.get("ours", one) for part, one in found.items()},
        theirs={part: one["theirs"] for part, one in found.items() if "theirs" in one},
        ratio=latency["theirs"]["median"] / latency["ours"]["median"] if latency else None,
        repeats=args.repeats,
        args=args,
    )


def measure(request: bench.Json) -> bench.Json:
    """Child: one side's frames."""
    return _frames(request)


# -- in one process ------------------------------------------------------------------------------------------------


def _latency(subject: serving.Subject, args: bench.argparse.Namespace, out: Path) -> bench.Json:
    medians: dict[str, list[float]] = {"ours": [], "theirs": []}
    for repeat, side in bench.alternating(args.repeats, ("ours", "theirs")):
        request = {"side": side, **_told(subject), "frames": 20 if args.quick else NUM_FRAMES}
        took = bench.in_child(request, out=out, name=f"frames-{side}-{repeat}")
        medians[side].append(took["median_ms"])
        bench.say(f"latency {repeat} {side}: {took}")
    return {side: bench.spread(values) for side, values in medians.items()}


def _told(subject: serving.Subject) -> bench.Json:
    return {
        "weights": str(subject.weights),
        "served": str(subject.served),
        "imgsz": subject.side_px,
        "images": [str(path) for path in subject.images],
    }


def _frames(request: bench.Json) -> bench.Json:
    import cv2

    frames = [cv2.imread(path) for path in request["images"][:16]]
    if request["side"] == "ours":
        import steadyolo

        detector = steadyolo.Detector(request["served"])
        label = detector.session.label
        ask = detector
    else:
        from ultralytics import YOLO

        model = YOLO(request["weights"])
        label = "torch"

        def ask(frame: object) -> object:
            return model(frame, imgsz=request["imgsz"], verbose=False)

    for frame in frames:
        ask(frame)
    seconds = []
    for number in range(request["frames"]):
        began = time.perf_counter()
        ask(frames[number % len(frames)])
        seconds.append(time.perf_counter() - began)
    return {
        "median_ms": bench.round_off(1000 * statistics.median(seconds)),
        "p99_ms": bench.round_off(1000 * bench.percentile(seconds, 0.99)),
        "with": label,
    }


# -- servers -------------------------------------------------------------------------------------------------------


def _command(side: str, subject: serving.Subject, port: int) -> tuple[list[str], str, str]:
    """What starts a side's server, where it is asked, and where it says that it is ready."""
    if side == "ours":
        return serving.steadyolo_serve(subject, port), f"/v1/models/{subject.name}/detect", "/v2/health/ready"
    code = LITSERVE if side == "litserve" else PLAIN
    onnx = str(subject.served / "model.onnx")
    return [sys.executable, "-c", code, onnx, str(port), str(subject.side_px)], "/predict", "/health"


def _throughput(subject: serving.Subject, args: bench.argparse.Namespace, out: Path) -> bench.Json:
    found: dict[str, dict[str, list[bench.Json]]] = {}
    for repeat, side in bench.alternating(args.repeats, ("ours", "litserve", "plain")):
        port = serving.free_port()
        command, path, _ = _command(side, subject, port)
        bodies = [one.read_bytes() for one in subject.images[:16]]
        if side == "litserve":
            script = out / "litserve_app.py"
            script.write_text(LITSERVE)
            command[1:3] = [str(script)]
            bodies = [_form(body) for body in bodies]
        kind = f"multipart/form-data; boundary={BOUNDARY}" if side == "litserve" else "image/jpeg"
        with serving.server(command, out, f"throughput-{side}-{repeat}") as process:
            client = serving.Client(port, path)
            serving.wait_for(lambda c=client, b=bodies[0], k=kind: c.post(b, k), process)
            client.close()
            serving.closed_loop(port, path, bodies, clients=2, seconds=2, kind=kind)  # for those that do not warm up
            for clients in CLIENTS:
                load = serving.closed_loop(port, path, bodies, clients=clients, seconds=args.seconds, kind=kind)
                found.setdefault(side, {}).setdefault(str(clients), []).append(load.told())
                bench.say(f"throughput {repeat} {side} {clients:2} clients: {load.told()}")
    told = {
        side: {
            clients: {name: bench.spread([one[name] for one in loads]) for name in ("per_second", "p50_ms", "p99_ms")}
            | {"failed": sum(one["failed"] for one in loads)}
            for clients, loads in by_clients.items()
        }
        for side, by_clients in found.items()
    }
    return {"ours": told.pop("ours"), "theirs": told}


BOUNDARY = "----bench"


def _form(body: bytes) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="i.jpg"\r\n'
    return head.encode() + b"Content-Type: image/jpeg\r\n\r\n" + body + f"\r\n--{BOUNDARY}--\r\n".encode()


def _swaps(subject: serving.Subject, args: bench.argparse.Namespace, out: Path) -> bench.Json:
    """New versions in a watched folder while two clients ask: every third is corrupt.

    The clients are the same as in the calm before, and it is their answers that tell which version was seen.
    """
    watched, port = out / "watched", serving.free_port()
    shutil.rmtree(watched, ignore_errors=True)
    versions = [_put_version(subject.served, watched, 0, corrupt=False)]
    command = [*serving.STEADYOLO, "serve", f"{subject.name}={watched}", "--watch", "--port", str(port)]
    path = f"/v1/models/{subject.name}/detect"
    bodies = [one.read_bytes() for one in subject.images[:16]]
    seen: set[str] = set()
    corrupt: list[str] = []
    took_s: list[float] = []
    log = out / "swaps.log"
    with serving.server(command, out, "swaps") as process:
        serving.wait_until_ready(port, process)

        def ask(stop: threading.Event | None = None) -> serving.Load:
            seconds = SWAPS_LIMIT_S if stop else args.seconds
            told = lambda answer: seen.add(json.loads(answer)["version"])  # noqa: E731
            return serving.closed_loop(port, path, bodies, clients=2, seconds=seconds, stop=stop, on_answer=told)

        calm, stop, loads = ask(), threading.Event(), list[serving.Load]()
        thread = threading.Thread(target=lambda: loads.append(ask(stop)))
        thread.start()
        try:
            for number in range(1, args.swaps + 1):
                is_corrupt, began = number % 3 == 0, time.monotonic()
                version = _put_version(subject.served, watched, number, corrupt=is_corrupt)
                (corrupt if is_corrupt else versions).append(version)
                while version not in seen and f"version {version} was refused" not in log.read_text():
                    if time.monotonic() - began > SWAP_LIMIT_S:
                        bench.say(f"version {number} came to nothing within {SWAP_LIMIT_S:.0f} s")
                        break
                    time.sleep(0.1)
                if not is_corrupt:  # a refusal is another matter, and shorter
                    took_s.append(time.monotonic() - began)
        finally:
            stop.set()
            thread.join()
    return {
        "calm": calm.told(),
        "swapping": loads[0].told(),
        "p99_over_calm": bench.round_off(
            bench.percentile(loads[0].of(200), 0.99) / bench.percentile(calm.of(200), 0.99)
        ),
        "swap_s": bench.spread(took_s),
        "versions": len(versions),
        "versions_seen": len(seen & set(versions)),
        "corrupt": len(corrupt),
        "corrupt_refused": sum(f"version {version} was refused" in log.read_text() for version in corrupt),
        "corrupt_seen": len(seen & set(corrupt)),
    }


def _put_version(served: Path, watched: Path, number: int, *, corrupt: bool) -> str:
    """A copy of the model whose manifest differs, so that it is another version, which is returned; put in whole."""
    watched.mkdir(parents=True, exist_ok=True)
    folder = watched / f"v{number:03}.served"
    partial = watched / f".v{number:03}.partial"
    shutil.copytree(served, partial)
    manifest = json.loads((partial / "manifest.json").read_text())
    manifest["source"]["step"] = number
    written = json.dumps(manifest).encode()
    (partial / "manifest.json").write_bytes(written)
    if corrupt:
        for graph in (*partial.glob("*.onnx"), *partial.glob("*.bin")):
            with graph.open("r+b") as file:
                file.seek(graph.stat().st_size // 2)
                file.write(os.urandom(4096))
    partial.rename(folder)
    return hashlib.sha256(written).hexdigest()[:12]


def _overload(subject: serving.Subject, args: bench.argparse.Namespace, out: Path) -> bench.Json:
    """What the server can do, three times that, and a tenth of it right after."""
    port = serving.free_port()
    path = f"/v1/models/{subject.name}/detect"
    bodies = [one.read_bytes() for one in subject.images[:16]]
    with serving.server(serving.steadyolo_serve(subject, port), out, "overload") as process:
        serving.wait_until_ready(port, process)
        able = serving.closed_loop(port, path, bodies, clients=4, seconds=args.seconds)
        rate = len(able.of(200)) / able.elapsed_s
        over = serving.open_loop(port, path, bodies, per_second=3 * rate, seconds=args.seconds, clients=128)
        after = serving.open_loop(port, path, bodies, per_second=rate / 4, seconds=4)
    late = [at for at, status in zip(after.at_s, after.status, strict=True) if status != 200]
    return {
        "able_per_second": bench.round_off(rate),
        "able": able.told(),
        "over": over.told(),
        "after": after.told(),
        "recovered_after_s": bench.round_off(max(late)) if late else 0.0,
    }


def _term(subject: serving.Subject, args: bench.argparse.Namespace, out: Path) -> bench.Json:
    """SIGTERM while eight clients ask: what was begun is answered, what comes later is refused or finds nobody."""
    lost, answered, codes = 0, 0, []
    path = f"/v1/models/{subject.name}/detect"
    bodies = [one.read_bytes() for one in subject.images[:16]]
    for repeat in range(args.repeats):
        port, loads = serving.free_port(), []
        with serving.server(serving.steadyolo_serve(subject, port), out, f"term-{repeat}") as process:
            serving.wait_until_ready(port, process)
            thread = threading.Thread(
                target=lambda p=port, kept=loads: kept.append(
                    serving.closed_loop(p, path, bodies, clients=8, seconds=60, ends_with_server=True)
                )
            )
            thread.start()
            time.sleep(2)
            os.kill(process.pid, signal.SIGTERM)
            codes.append(process.wait(30))
            thread.join()
        answered += len(loads[0].of(200))
        lost += len(loads[0].of(serving.CUT_SHORT))
    return {"answered": answered, "accepted_and_lost": lost, "exit_codes": codes}


if __name__ == "__main__":
    bench.start(main, measure)

"""`steadyolo serve`: warm models over HTTP.

The worker process is started before this one imports what it serves with, so that both import at once.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steadyolo.adapters.http.listening import listen, num_connections
from steadyolo.errors import UserError
from steadyolo.serve.spawning import spawn

if TYPE_CHECKING:
    import socket

    from steadyolo.adapters.http.app import App
    from steadyolo.adapters.http.limits import HttpLimits
    from steadyolo.serve.served_model import ServedModel
    from steadyolo.serve.service import Readiness
    from steadyolo.serve.settings import ServedName, ServeSettings
    from steadyolo.serve.spawning import Spawned

RUNTIMES = ("auto", "openvino", "onnxruntime", "tensorrt")
TOKENS = "STEADYOLO_TOKENS"  # the environment variable
_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,99})=(.+)")
_ENDINGS = (".served", ".pt", ".onnx")
_HELP = """Serve models over HTTP, warm from the first request on.

MODEL is a served model (`steadyolo export` makes one), a run folder that has one, or a store's URL of one.
NAME=MODEL names it in requests; otherwise it is called as its file or folder is."""
_EXAMPLES = """examples:
  steadyolo serve best.served
  steadyolo serve pcb=runs/detect/train --port 9000 --token-file tokens.txt
  curl --data-binary @board.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/v1/models/best/detect
"""


def main(arguments: list[str]) -> None:
    """Serve until SIGTERM or SIGINT. Raises: UserError before anything is started where that can be told."""
    started_s = time.perf_counter()
    asked = _parse(arguments)
    listener = listen(asked.host, asked.port)
    variable = os.environ.pop(TOKENS, None)  # the workers have no use for it
    first = spawn(device=asked.device.partition(",")[0], ahead=_first_asked(asked))
    try:
        is_whole = _serve(asked, listener, first, variable, started_s)
    finally:
        first.connection.close()
    if not is_whole:
        sys.exit(1)


def _first_asked(asked: argparse.Namespace) -> dict[str, object] | None:
    """What the first worker can begin with at once: the first model, where neither versions nor a budget decide."""
    if asked.watch or asked.budget or asked.device != "cpu" or "://" in asked.models[0]:
        return None
    match = _NAMED.fullmatch(asked.models[0])
    name = match[2] if match and not Path(asked.models[0]).exists() else asked.models[0]
    return {"name": name, "settings": _session(asked)}


def _session(asked: argparse.Namespace) -> dict[str, Any]:
    return {"runtime": asked.runtime, "precision": asked.precision, "num_threads": asked.threads}


def served_names(models: Sequence[str], *, is_watched: bool, pinned: Sequence[str] = ()) -> list[ServedName]:
    """What each model is called and where it is. Raises: UserError where two have one name."""
    from steadyolo.serve.settings import ServedName

    names: dict[str, ServedName] = {}
    for model in models:
        match = _NAMED.fullmatch(model)
        name, source = (match[1], match[2]) if match and not Path(model).exists() else (_called(model), model)
        if name in names:
            raise UserError(f"two models are called {name}", remedy=f"name one differently: other={source}")
        names[name] = ServedName(name=name, source=source, is_pinned=name in pinned, is_watched=is_watched)
    for name in pinned:
        if name not in names:
            raise UserError(f"--pin names {name}, which is not served", remedy=f"use one of: {', '.join(names)}")
    return list(names.values())


def _called(source: str) -> str:
    last = source.partition("?")[0].rstrip("/").rpartition("/")[2]
    stem = next((last.removesuffix(ending) for ending in _ENDINGS if last.endswith(ending)), last)
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", stem).lstrip("-.")
    if not name:
        raise UserError(f"{source} has no name to be called by", remedy=f"give it one: name={source}")
    return name


def _settings(asked: argparse.Namespace) -> ServeSettings:
    from steadyolo.serve.admission import Admission
    from steadyolo.serve.place import LoadSettings
    from steadyolo.serve.session import SessionSettings
    from steadyolo.serve.settings import ServeSettings
    from steadyolo.spec.size import parse_bytes

    return ServeSettings(
        session=SessionSettings(**_session(asked)),
        devices=tuple(asked.device.split(",")),
        load=LoadSettings(
            warm_up=not asked.no_warmup,
            check=not asked.no_warmup,
            max_batch=asked.max_batch,
            hold_s=asked.batch_wait,
            idle_s=asked.rewarm,
        ),
        admission=Admission(num_queued=asked.max_queue, latency_s=min(asked.max_wait, asked.timeout)),
        budget_bytes=parse_bytes(asked.budget) if asked.budget else None,
        load_on_request=asked.load_on_request,
    )


def _limits(asked: argparse.Namespace) -> HttpLimits:
    from steadyolo.adapters.http.limits import HttpLimits
    from steadyolo.spec.size import parse_bytes

    return HttpLimits(
        body_bytes=parse_bytes(asked.max_body),
        num_pictures=asked.max_pictures,
        answer_timeout_s=asked.timeout,
        requests_per_s=asked.rate,
        num_burst=asked.burst,
        num_connections=asked.max_connections,
        proxies=tuple(asked.proxy),
        are_metrics_open=asked.open_metrics,
        url_hosts=frozenset(host.lower().rstrip(".") for host in asked.allow_url_host),
    )


def _serve(
    asked: argparse.Namespace, listener: socket.socket, first: Spawned, variable: str | None, started_s: float
) -> bool:
    import asyncio
    import logging

    import uvloop

    from steadyolo.adapters.http.server import Front

    logging.basicConfig(
        level=asked.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("uvicorn.error").setLevel(
        logging.ERROR
    )  # a line for each odd request is a gift to who sends them
    address, limits = _address(listener), _limits(asked)
    limits = replace(limits, num_connections=num_connections(limits.num_connections))
    is_private = address.startswith(("127.", "[::1]"))
    app = _app(asked, limits, variable, first, is_private=is_private)
    if not app.has_tokens and not is_private:
        _tell(f"warning: anybody who reaches {address} may use these models; --token-file names who may")

    def after() -> str:
        return f"{time.perf_counter() - started_s:.2f} s after the start"

    front = Front(
        app,
        listener,
        limits,
        on_live=lambda: _tell(f"live: http://{address}, {after()}"),
        on_ready=lambda: _tell(f"ready: {_choice(app.service.readiness())}; {after()}"),
        grace_s=asked.grace,
        drain_s=asked.drain,
        ends_when_failed=not asked.watch,
        rewarm_s=None if asked.no_warmup else asked.rewarm,
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(front.run())


def application(arguments: list[str]) -> App:
    """The same for a server that is not ours, such as a replica of Ray Serve: it starts when the models are warm."""
    asked = _parse(arguments)
    return _app(asked, _limits(asked), os.environ.get(TOKENS), None, is_private=False)


def _app(
    asked: argparse.Namespace, limits: HttpLimits, variable: str | None, first: Spawned | None, *, is_private: bool
) -> App:
    from steadyolo.adapters.http.app import App
    from steadyolo.adapters.http.limits import read_tokens
    from steadyolo.serve.warm_service import WarmService

    names = served_names(asked.models, is_watched=asked.watch, pinned=asked.pin)
    tokens = read_tokens(asked.token_file, variable)
    service = WarmService(names, _settings(asked), find=_find, first=first)
    return App(service, limits, tokens, may_control=bool(tokens) or is_private)


def _find(name: str) -> ServedModel:
    from steadyolo.cli.models import find_model

    return find_model(name, verify=False)  # whoever loads it reads every byte


def _choice(readiness: Readiness) -> str:
    return ", ".join(
        f"{one.name} {one.model.version} on {one.session}" + (f", {1e3 * one.warm_s:.1f} ms" if one.warm_s else "")
        for one in readiness.models
        if one.model is not None and one.session
    )


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _tell(line: str) -> None:
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except OSError:  # whoever started it reads no more, or its disk is full: that is no reason to end, or to end badly
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _number(kind: type[int] | type[float], *, may_be_zero: bool = False) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = kind(text)
        if not 0 <= value < 1e9 or (value == 0 and not may_be_zero):
            raise ValueError(text)
        return value

    read.__name__ = "number that is not negative" if may_be_zero else "positive number"  # for the message of argparse
    return read


def _parse(arguments: list[str]) -> argparse.Namespace:
    asked = _parser().parse_args(arguments)
    if asked.device == "all":
        from steadyolo.serve.gpus import all_gpus

        asked.device = ",".join(all_gpus())
    return asked


def _parser() -> argparse.ArgumentParser:
    count, seconds, wait = _number(int), _number(float), _number(float, may_be_zero=True)
    parser = argparse.ArgumentParser(
        prog="steadyolo serve",
        description=_HELP,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("models", nargs="+", metavar="[NAME=]MODEL")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is every one (127.0.0.1)")
    add("--port", type=int, default=8000, help="0 is any free one (8000)")
    models = parser.add_argument_group("models").add_argument
    models("--runtime", default="auto", choices=RUNTIMES, help="auto measures, and takes the fastest (auto)")
    models(
        "--device", default="cpu", help="cpu; cuda:0 or several, cuda:0,cuda:1; all GPUs and MIG instances: all (cpu)"
    )
    models("--precision", choices=["fp32", "bf16", "fp16"], help="where nothing is said, the fastest that is right")
    models("--threads", type=count, help="of each worker; as many as cores where nothing is said")
    models("--budget", metavar="SIZE", help="most memory of all models together, such as 2GiB")
    models("--pin", action="append", default=[], metavar="NAME", help="a model that is never unloaded for others")
    models("--load-on-request", action="store_true", help="a request may load its model, and wait for it")
    models("--watch", action="store_true", help="look for new versions, and swap them in without a slow request")
    models("--no-warmup", action="store_true", help="ready at once, unchecked and slow at first: for debugging")
    models(
        "--rewarm", type=seconds, default=1.0, metavar="SECONDS", help="of idleness, after which all is used once (1)"
    )
    models("--max-batch", type=count, default=1, metavar="N", help="pictures that are computed at once (1)")
    models("--batch-wait", type=wait, default=0.0, metavar="SECONDS", help="that a picture waits for others (0)")
    limits = parser.add_argument_group("limits").add_argument
    limits("--timeout", type=seconds, default=10.0, metavar="SECONDS", help="in which a request is answered (10)")
    limits("--max-wait", type=seconds, default=2.0, metavar="SECONDS", help="who would wait longer is refused (2)")
    limits("--max-queue", type=count, default=512, metavar="N", help="requests that wait (512)")
    limits("--max-body", default="64MiB", metavar="SIZE", help="of one request, unpacked (64MiB)")
    limits("--max-pictures", type=count, default=16, metavar="N", help="in one request (16)")
    limits("--rate", type=seconds, metavar="N", help="requests a second of one client; no limit where nothing is said")
    limits("--burst", type=count, default=20, metavar="N", help="that one client may send at once (20)")
    limits("--max-connections", type=count, default=1_000, metavar="N", help="that are open at once (1000)")
    limits("--proxy", action="append", default=[], metavar="ADDRESS", help="whose X-Forwarded-For is believed")
    limits("--open-metrics", action="store_true", help="/metrics needs no token")
    limits("--token-file", type=Path, metavar="FILE", help=f"one token a line; {TOKENS} holds some too, with commas")
    limits("--allow-url-host", action="append", default=[], metavar="HOST", help="from which pictures may be fetched")
    ending = parser.add_argument_group("ending, and what is told").add_argument
    ending("--grace", type=wait, default=1.0, metavar="SECONDS", help="from not ready to not listening (1)")
    ending("--drain", type=seconds, default=30.0, metavar="SECONDS", help="then, for what was accepted (30)")
    ending("--log-level", default="warning", choices=["debug", "info", "warning", "error"], help="(warning)")
    return parser

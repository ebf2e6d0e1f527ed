"""`auto`: which of the runtimes here is the fastest for a model on this machine. Measured once, kept, and shown."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from steadyolo.adapters.runtimes.cache import cache_folder
from steadyolo.errors import SteadyError, UserError
from steadyolo.serve.served_model import ServedModel
from steadyolo.serve.session import Session, SessionSettings

NUM_WARM_RUNS, NUM_RUNS, LIMIT_S = 3, 9, 3.0
_MODULES = {"openvino": "openvino", "onnxruntime": "onnxruntime", "tensorrt": "onnxruntime"}

Open = Callable[[ServedModel, SessionSettings], Session]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The runtime taken, and what each that was tried showed."""

    runtime: str
    run_ms: Mapping[str, float]  # median for one full image, by session label
    refused: Mapping[str, str]  # why a runtime that is here was not measured

    def told(self) -> str:
        """One line for people."""
        figures = [f"{label} {median_ms:.1f} ms" for label, median_ms in self.run_ms.items()]
        return f"{self.runtime}: {', '.join([*figures, *(f'{one} refused' for one in self.refused)])}"


def choose(model: ServedModel, settings: SessionSettings, open_session: Open) -> Choice:
    """What was chosen before on such a machine for this model and these settings; measures where nothing was.

    Raises: UserError where no runtime that is here takes the settings.
    """
    candidates = [one for one in _candidates(settings) if importlib.util.find_spec(_MODULES[one])]
    if not candidates:
        raise UserError("no runtime is installed", remedy="install one: pip install openvino, or onnxruntime")
    path = (settings.cache or cache_folder(model)) / model.version / f"choice-{_key(settings, candidates)}.json"
    kept = _read(path)
    if kept is not None and kept.runtime in candidates:
        return kept
    choice = measure(model, settings, candidates, open_session)
    _write(path, choice)
    return choice


def measure(model: ServedModel, settings: SessionSettings, candidates: list[str], open_session: Open) -> Choice:
    """Open each candidate and run full images through it. Raises: UserError where none can be opened."""
    images = np.random.default_rng(0).random((1, 3, *model.shape_px), np.float32)
    run_ms: dict[str, float] = {}
    runtimes: dict[str, str] = {}
    refused: dict[str, str] = {}
    for runtime in candidates:
        try:
            session = open_session(model, replace(settings, runtime=runtime))
            try:
                run_ms[session.label] = _median_ms(lambda session=session: session.run(images))  # type: ignore[misc]
                runtimes[session.label] = runtime
            finally:
                session.close()
        except (SteadyError, ImportError) as error:
            refused[runtime] = str(error).splitlines()[0]
    if not run_ms:
        raise UserError(
            f"no runtime takes {model.folder} on {settings.device}: {'; '.join(refused.values())}",
            remedy="use device=cpu and no precision, or export the model again",
        )
    fastest = min(run_ms, key=lambda label: run_ms[label])
    return Choice(runtime=runtimes[fastest], run_ms=run_ms, refused=refused)


def _median_ms(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    times_ms: list[float] = []
    while len(times_ms) < NUM_WARM_RUNS + NUM_RUNS and (len(times_ms) < 2 or time.perf_counter() - begin < LIMIT_S):
        before = time.perf_counter()
        run()
        times_ms.append((time.perf_counter() - before) * 1000)
    measured = sorted(times_ms[NUM_WARM_RUNS:] or times_ms[1:])
    return measured[len(measured) // 2]


def _candidates(settings: SessionSettings) -> tuple[str, ...]:
    return ("openvino", "onnxruntime") if settings.device == "cpu" else ("tensorrt", "onnxruntime")


def _key(settings: SessionSettings, candidates: list[str]) -> str:
    """Names what a measurement holds for: processor, threads, device, precision and the runtimes' installed files."""
    stamps = []
    for one in candidates:
        spec = importlib.util.find_spec(_MODULES[one])
        origin = spec.origin if spec else None
        stamps.append(f"{one} {origin} {Path(origin).stat().st_mtime_ns if origin else ''}")
    asked = (settings.device, settings.precision, settings.num_threads, os.cpu_count(), _processor())
    return sha256("\n".join([*stamps, *map(str, asked)]).encode()).hexdigest()[:16]


def _processor() -> str:
    with suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith(("model name", "CPU part")):
                return line.partition(":")[2].strip()
    return os.uname().machine


def _read(path: Path) -> Choice | None:
    try:
        return Choice(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _write(path: Path, choice: Choice) -> None:
    import tempfile

    with suppress(OSError):  # a cache: where it cannot be kept, the next start measures again
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".partial-", delete=False) as file:
            json.dump(asdict(choice), file, indent=1)
        Path(file.name).replace(path)

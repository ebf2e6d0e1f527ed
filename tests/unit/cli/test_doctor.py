"""`steadyolo doctor` finds what is wrong with a machine, and says what to do."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

from steadyolo.cli import doctor
from steadyolo.cli.doctor import GIB, NETWORK_FILE_SYSTEMS, SUPPORTED, Finding, Limits

APP = "import typer; from steadyolo.cli.doctor import doctor; a = typer.Typer(); a.command()(doctor); a()"


def test_the_supported_versions_are_those_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    asked = {name: f"{name}>={least}" + (f",<{below}" if below else "") for name, (least, below) in SUPPORTED.items()}
    assert set(asked.values()) <= set(project["dependencies"])
    assert project["requires-python"] == ">=3.11"


@pytest.mark.parametrize(
    ("name", "installed", "level"),
    [
        ("torch", "2.14.1+cu130", "ok"),
        ("torch", "2.6.0", "ok"),
        ("torch", "2.5.1", "problem"),
        ("torch", None, "problem"),
        ("ultralytics", "8.4.190", "ok"),
        ("ultralytics", "8.4.99", "problem"),
        ("ultralytics", "8.5.0", "problem"),
        ("numpy", "2.4.6", "ok"),
    ],
)
def test_versions(name: str, installed: str | None, level: str) -> None:
    found = doctor.judge_version(name, installed)
    assert found.level == level
    assert bool(found.remedy) == (level != "ok")


def test_python() -> None:
    assert doctor.judge_python((3, 10, 14)).level == "problem"
    assert doctor.judge_python((3, 11, 0)).level == "ok"


@pytest.mark.parametrize(
    ("packages", "code", "level"),
    [
        ({"opencv-python": "5.0"}, 0, "ok"),
        ({}, 0, "ok"),  # built by hand or by conda
        ({"opencv-python": "5.0", "opencv-python-headless": "4.9"}, 0, "warning"),
        ({"opencv-python": "5.0"}, 1, "problem"),
    ],
)
def test_opencv(packages: dict[str, str], code: int, level: str) -> None:
    assert doctor.judge_opencv(packages, code, "ImportError: libGL.so.1").level == level


@pytest.mark.parametrize(
    ("threads", "allowed", "quota", "level"),
    [(8, 8, None, "ok"), (8, 8, 2.0, "warning"), (8, 2, None, "warning"), (2, 8, 1.5, "ok"), (1, 8, 0.25, "ok")],
)
def test_threads(threads: int, allowed: int, quota: float | None, level: str) -> None:
    assert doctor.judge_threads(threads, allowed, quota).level == level


@pytest.mark.parametrize(
    ("available", "limit", "level"),
    [
        (16 * GIB, None, "ok"),
        (16 * GIB, 2 * GIB, "warning"),
        (16 * GIB, GIB // 2, "problem"),
        (GIB // 2, 64 * GIB, "problem"),
    ],
)
def test_memory(available: int, limit: int | None, level: str) -> None:
    assert doctor.judge_memory(available, limit, 32 * GIB).level == level


def test_disk() -> None:
    assert [doctor.judge_disk(n).level for n in (0, GIB, 100 * GIB)] == ["problem", "warning", "ok"]


def test_file_systems() -> None:
    kinds = ["ext4", "xfs", None, "tmpfs", "overlay", *NETWORK_FILE_SYSTEMS]
    warned = {kind for kind in kinds if doctor.judge_file_system(kind).level == "warning"}
    assert warned == set(kinds) - {"ext4", "xfs", None}


def test_the_file_system_is_that_of_the_deepest_and_latest_mount(tmp_path: Path) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(
        "27 1 254:0 / / rw - ext4 /dev/vda rw\n"
        f"28 27 0:3 / {tmp_path}/a\\040b rw shared:1 - tmpfs tmpfs rw\n"
        f"29 27 0:4 / {tmp_path}/a\\040b rw - nfs4 server:/x rw\n"
        f"30 27 0:5 / {tmp_path}/a rw - xfs /dev/vdb rw\n"
    )
    assert doctor.file_system(tmp_path / "a b" / "runs", mountinfo) == "nfs4"
    assert doctor.file_system(tmp_path / "ab", mountinfo) == "ext4"
    assert doctor.file_system(tmp_path, tmp_path / "no such file") is None


def fake_system(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "limits"),
    [
        ({}, Limits(None, None)),
        (
            {
                "proc/self/cgroup": "0::/pod/container\n",
                "sys/fs/cgroup/pod/container/cpu.max": "max 100000\n",
                "sys/fs/cgroup/pod/container/memory.max": "8589934592\n",
                "sys/fs/cgroup/pod/cpu.max": "150000 100000\n",
                "sys/fs/cgroup/pod/memory.max": "4294967296\n",
            },
            Limits(1.5, 4 * GIB),
        ),
        (  # inside a container, whose own group is the root that it sees
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/memory.max": "max\n",
            },
            Limits(4.0, None),
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n",
                "sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes": "2147483648\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            Limits(0.5, 2 * GIB),
        ),
    ],
)
def test_control_groups(tmp_path: Path, files: dict[str, str], limits: Limits) -> None:
    assert doctor.cgroup_limits(fake_system(tmp_path, files)) == limits


def test_durability_is_measured_and_leaves_nothing_behind(tmp_path: Path) -> None:
    found = doctor.judge_durability(tmp_path)
    assert found.level in ("ok", "warning")
    assert " ms" in found.text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_keeps_nothing_is_a_problem(tmp_path: Path) -> None:
    found = doctor.judge_durability(tmp_path / "missing")
    assert found.level == "problem"
    assert "missing" in found.text


def test_a_disk_that_refuses_to_sync_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def refuse(descriptor: int) -> None:
        calls.append(descriptor)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    found = doctor.judge_durability(tmp_path)
    assert calls, "no fault happened, so this proves nothing"
    assert found.level == "problem"
    assert list(tmp_path.iterdir()) == []


def test_a_torch_that_does_not_import_is_a_problem() -> None:
    (found,) = doctor.judge_probe(-11, "no message", limits=Limits(None, None))
    assert found.level == "problem"
    assert "pip install" in found.remedy


def test_a_gpu_is_told_with_its_memory_and_precision() -> None:
    gpu = {"device": "cuda:0", "name": "H100", "compute": "fp16", "channels_last": True, "total_bytes": 78 * GIB}
    cpu = {"device": "cpu", "compute": "fp32", "channels_last": True}
    seen = {
        "num_threads": 1,
        "cuda": "13.0",
        "devices": [cpu, {**gpu, "free_bytes": 70 * GIB}],
    }
    findings = doctor.judge_probe(0, json.dumps(seen), limits=Limits(None, None))
    assert findings[1] == Finding(
        "cuda:0", "ok", "H100, 70.0 GiB of 78.0 GiB free, precision auto is fp16 channels_last"
    )
    seen["devices"][1]["free_bytes"] = GIB  # type: ignore[index]
    assert doctor.judge_probe(0, json.dumps(seen), limits=Limits(None, None))[1].level == "warning"


def test_the_table_puts_each_remedy_under_its_finding() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(doctor.table([Finding("disk", "problem", "0 B free here", "free some space")]))
    first, second = console.export_text().rstrip().splitlines()
    assert first.split() == ["problem", "disk", "0", "B", "free", "here"]
    assert second.strip() == "→ free some space"


def run_doctor(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", APP, *words], cwd=cwd, capture_output=True, text=True, check=False)


def test_this_machine_is_examined(tmp_path: Path) -> None:
    done = run_doctor("--json", cwd=tmp_path)
    told = json.loads(done.stdout)
    levels = {finding["name"]: finding["level"] for finding in told["findings"]}
    assert done.returncode == (0 if told["ok"] else 1)
    assert told["ok"] == ("problem" not in levels.values())
    assert levels["torch"] == levels["ultralytics"] == levels["OpenCV"] == levels["cpu"] == "ok"
    assert {"threads", "memory", "disk", "file system", "fsync", "shared memory"} <= levels.keys()
    assert all(finding["remedy"] for finding in told["findings"] if finding["level"] != "ok")


def test_a_folder_that_cannot_be_written_ends_in_exit_code_1() -> None:
    proc = Path("/proc/self")  # not even root can make a file there
    if not proc.is_dir():
        pytest.skip("no /proc here")
    done = run_doctor(cwd=proc)
    assert done.returncode == 1
    assert "problem  fsync" in done.stdout
    assert "→ run in a folder where you may write" in done.stdout


def test_help_has_an_example(tmp_path: Path) -> None:
    assert "Example: `steadyolo doctor`" in run_doctor("--help", cwd=tmp_path).stdout

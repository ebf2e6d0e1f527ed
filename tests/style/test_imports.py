"""Importing steadyolo does nothing, and asking starts fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import steadyolo

CHILD = Path(__file__).with_name("import_child.py")


def run_child(tmp_path: Path, package_folder: Path, *, what: str) -> dict[str, list[str]]:
    """What importing a package changed in a process with DNS broken and an empty home."""
    home, folder = tmp_path / "home", tmp_path / "cwd"
    home.mkdir()
    folder.mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "PYTHONPATH": str(package_folder),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, str(CHILD), what], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    report["files"] = [str(path) for place in (home, folder) for path in place.rglob("*")]
    return report


def test_importing_does_nothing(tmp_path: Path) -> None:
    report = run_child(tmp_path, Path(steadyolo.__file__).parents[1], what="steadyolo")
    assert len(report.pop("modules")) > 10, "hardly anything was imported, so this proves nothing"
    assert {what: change for what, change in report.items() if change} == {}


NOISE = {
    "environment": "import os; os.environ['A'] = 'b'",
    "files": "open('left-behind', 'w').close()",
    "folder": "import os; os.chdir('/')",
    "functions": "import PIL.Image, torch; torch.save = PIL.Image.open = print",
    "log handlers": "import logging; logging.basicConfig()",
    "names asked for": "import socket\ntry: socket.getaddrinfo('example.org', 80)\nexcept OSError: pass",
    "signal handlers": "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "threads": "import threading, time; threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
}


def test_an_import_with_effects_is_noticed(tmp_path: Path) -> None:
    package = tmp_path / "packages" / "noisy"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("\n".join(NOISE.values()))
    report = run_child(tmp_path, package.parent, what="noisy")
    assert {what for what, change in report.items() if change} == {"modules", *NOISE}
    assert set(report["functions"]) >= {"torch.save", "PIL.Image.open"}


@pytest.mark.parametrize("module", ["steadyolo", "steadyolo.cli.main", "steadyolo.spec.run_spec", "steadyolo.plan"])
def test_asking_starts_without_torch(module: str) -> None:
    heavy = "{'torch', 'torchvision', 'ultralytics', 'cv2', 'matplotlib'}"
    program = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"

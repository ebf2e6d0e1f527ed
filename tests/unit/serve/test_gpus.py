"""Which GPUs are used when all are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from steadyolo.errors import UserError
from steadyolo.serve.gpus import all_gpus, listed
from steadyolo.serve.spawning import device_inside, visible

TWO = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-0b1c2d3e-0000-c3f3-1b07-005d5ae1dc40)
"""
DIVIDED = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f)
  MIG 3g.20gb     Device  0: (UUID: MIG-3d5a5e4c-b0c8-5a5f-8a1d-7b2f3c1a9e10)
  MIG 1g.5gb      Device  1: (UUID: MIG-GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f/7/0)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-0b1c2d3e-0000-c3f3-1b07-005d5ae1dc40)
"""


def test_gpus_and_their_instances_are_found() -> None:
    first, second = listed(TWO)
    assert first == "GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f"
    assert listed(DIVIDED) == (
        "MIG-3d5a5e4c-b0c8-5a5f-8a1d-7b2f3c1a9e10",
        "MIG-GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f/7/0",
        second,
    )
    assert listed("No devices found.\n") == ()
    assert [(visible(one), device_inside(one)) for one in listed(DIVIDED)] == [
        (one, "cuda:0") for one in listed(DIVIDED)
    ]


def nvidia_smi(folder: Path, text: str, code: int = 0) -> None:
    """Another program of that name, for a machine that has no driver."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\nexit {code}\n")
    program.chmod(0o755)


def test_all_of_them_are_asked_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    nvidia_smi(tmp_path, TWO)
    assert all_gpus() == listed(TWO)
    for text, code in (("No devices found.\n", 0), (TWO, 9)):
        nvidia_smi(tmp_path, text, code)
        with pytest.raises(UserError, match="no GPU is here: nvidia-smi"):
            all_gpus()


def test_only_what_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, MIG-3d5a5e4c")
    assert all_gpus() == ("cuda:1", "MIG-3d5a5e4c")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,-1,1")
    assert all_gpus() == ("cuda:0",)  # as CUDA reads it
    for none in ("", "-1", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES allows none"):
            all_gpus()

from __future__ import annotations

from typing import Any

import pytest
import torch

import steadyolo.train.precision as precision
from steadyolo.errors import UserError
from steadyolo.train.precision import Precision, choose_precision

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")


def choose(device: torch.device, **given: Any) -> Precision:
    asked: dict[str, Any] = {"asked": "auto", "amp": True, "amp_given": False, "channels_last": None}
    return choose_precision(**asked | given, device=device)


@pytest.mark.parametrize(
    ("device", "has_bf16", "given", "expected"),
    [
        (CPU, True, {}, ("bf16", True)),
        (CPU, False, {}, ("fp32", True)),
        (CPU, True, {"asked": "fp32"}, ("fp32", True)),
        (CPU, False, {"asked": "bf16"}, ("bf16", True)),  # slow, but what was asked for
        (CPU, True, {"amp": False, "amp_given": True}, ("fp32", True)),
        (CPU, True, {"amp": True, "amp_given": True}, ("bf16", True)),
        (CPU, True, {"channels_last": False}, ("bf16", False)),
        (CPU, False, {"channels_last": True}, ("fp32", True)),
        (CPU, True, {"amp": False, "asked": "bf16"}, ("bf16", True)),  # only a default says otherwise
        (CUDA, False, {}, ("fp16", True)),
        (CUDA, False, {"amp": False, "amp_given": True}, ("fp32", True)),
        (CUDA, False, {"asked": "bf16"}, ("bf16", True)),
        (CUDA, False, {"amp": "bf16", "amp_given": True}, ("bf16", True)),
        (CUDA, False, {"channels_last": False}, ("fp16", False)),
        (MPS, True, {}, ("fp32", False)),
    ],
)
def test_what_is_chosen(
    device: torch.device,
    has_bf16: bool,
    given: dict[str, Any],
    expected: tuple[str, bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: has_bf16)
    assert choose(device, **given) == Precision(*expected)


@pytest.mark.parametrize(
    ("device", "given", "message"),
    [
        (CPU, {"asked": "fp16"}, "fp16 cannot be trained in on a CPU"),
        (CPU, {"asked": "bf16", "amp": False, "amp_given": True}, "contradict"),
        (CUDA, {"asked": "fp32", "amp": "bf16", "amp_given": True}, "contradict"),
    ],
)
def test_what_is_refused(device: torch.device, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        choose(device, **given)
    assert caught.value.remedy


def test_what_is_cast_to() -> None:
    assert Precision("fp32", True).autocast_dtype is None
    assert Precision("bf16", True).autocast_dtype is torch.bfloat16
    assert Precision("fp16", True).autocast_dtype is torch.float16

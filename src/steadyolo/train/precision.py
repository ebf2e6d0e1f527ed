"""Which arithmetic a run computes in."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import torch

from steadyolo.errors import UserError


@dataclass(frozen=True, slots=True)
class Precision:
    """How forward passes compute. Weights, optimizer, EMA and loss stay in fp32 whatever is chosen here."""

    compute: str  # fp32 | bf16 | fp16
    channels_last: bool

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.compute)


def cpu_has_bf16() -> bool:
    """True where matrix arithmetic in bf16 is done by the processor: AVX512-BF16 or AMX on x86, BF16 on Arm."""
    if platform.machine() in {"x86_64", "AMD64"}:
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name, bool)() for name in checks)
    return bool(getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", bool)())


def choose_precision(
    *, asked: str, amp: bool | str | None, amp_given: bool, channels_last: bool | None, device: torch.device
) -> Precision:
    """Resolve `precision.compute`, and Ultralytics' `amp` and `channels_last`, for a device.

    `amp_given` tells an asked-for `amp=True` from Ultralytics' default. Raises: UserError where the two contradict each
    other or the device cannot do what was asked.
    """
    by_amp = {False: "fp32", "fp32": "fp32", "bf16": "bf16", "fp16": "fp16"}.get(amp)
    if asked != "auto" and by_amp is not None and amp_given and by_amp != asked:
        raise UserError(f"amp={amp} and precision.compute={asked} contradict each other", remedy="give one of them")
    compute = asked if asked != "auto" else by_amp
    if device.type == "cuda":
        compute = compute or "fp16"
        return Precision(compute, channels_last is not False)
    if compute == "fp16":
        raise UserError("fp16 cannot be trained in on a CPU", remedy="use precision.compute=bf16, fp32 or auto")
    compute = compute or ("bf16" if device.type == "cpu" and cpu_has_bf16() else "fp32")
    return Precision(compute, device.type == "cpu" if channels_last is None else channels_last)

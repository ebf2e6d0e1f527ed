"""Which GPUs there are, and which parts of them: asked of the driver's own tool, as no front imports CUDA."""

from __future__ import annotations

import os
import re
import subprocess
from itertools import takewhile

from steadyolo.errors import UserError

_LIMIT_S = 30.0  # a driver that wakes up takes seconds
_LINE = re.compile(r"^(?P<inset>\s*)(?:GPU|MIG)\b.*\(UUID: (?P<uuid>[A-Za-z0-9/-]+)\)\s*$")
_IS_NAMED = re.compile(r"\d|GPU-|MIG-")  # CUDA stops at what is neither: -1 is how people hide all


def all_gpus() -> tuple[str, ...]:
    """Every GPU that this process may use, or where one is divided (MIG) each of its instances, as workers name them.

    Raises: UserError where there is none.
    """
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        named = takewhile(_IS_NAMED.match, (one.strip() for one in allowed.split(",")))
        found = tuple(f"cuda:{one}" if one.isdecimal() else one for one in named)
        why = "CUDA_VISIBLE_DEVICES allows none"
    else:
        try:
            told = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=_LIMIT_S)
            found, why = listed(told.stdout), "nvidia-smi lists none"
        except (OSError, subprocess.SubprocessError) as error:
            found, why = (), f"nvidia-smi cannot be asked: {error}"
    if not found:
        raise UserError(f"no GPU is here: {why}", remedy="use --device cpu, or name them: --device cuda:0,cuda:1")
    return found


def listed(text: str) -> tuple[str, ...]:
    """The devices in what `nvidia-smi -L` prints. By their UUIDs: CUDA may count in another order than that tool does.

    Instances of a divided GPU follow it, inset; such a GPU itself cannot be used.
    """
    devices: list[str] = []
    whole = ""
    for line in text.splitlines():
        if (match := _LINE.match(line)) is None:
            continue
        if match["inset"] and whole in devices:
            devices.remove(whole)
        elif not match["inset"]:
            whole = match["uuid"]
        devices.append(match["uuid"])
    return tuple(devices)

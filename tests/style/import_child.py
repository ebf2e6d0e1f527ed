"""Imports every module of a package and tells, as one line of JSON, what that changed in this process.

Run as a script with the package's name. `steadyolo.adapters.ultralytics` is left out: its library writes settings,
looks up names and patches functions when it is imported, which is why it has one door.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import pkgutil
import signal
import socket
import sys
import threading
from typing import Any

import cv2  # noqa: F401  # these have import effects of their own, which are not ours
import PIL.Image
import torch
import torchvision  # noqa: F401

EXEMPT = "steadyolo.adapters.ultralytics"

names_asked_for: list[str] = []


def refuse(host: Any, *arguments: Any, **options: Any) -> Any:
    names_asked_for.append(str(host))
    raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


def look() -> dict[str, dict[str, Any]]:
    loggers = {"": logging.getLogger(), **logging.Logger.manager.loggerDict}
    return {
        "environment": dict(os.environ),
        "folder": {"cwd": os.getcwd()},
        "log handlers": {name: list(getattr(logger, "handlers", ())) for name, logger in loggers.items()},
        "functions": {
            "torch.save": torch.save,
            "torch.load": torch.load,
            "PIL.Image.open": PIL.Image.open,
            "threads of torch": torch.get_num_threads(),
            "default type": torch.get_default_dtype(),
            "excepthook": sys.excepthook,
        },
        "signal handlers": {
            number.name: signal.getsignal(number) for number in signal.valid_signals() if number in [*signal.Signals]
        },
        "threads": {thread.name: thread.ident for thread in threading.enumerate()},
    }


def main(package_name: str) -> None:
    socket.getaddrinfo = socket.gethostbyname = socket.gethostbyname_ex = refuse
    before = look()
    package = importlib.import_module(package_name)
    modules = [package_name]
    for found in pkgutil.walk_packages(package.__path__, f"{package_name}."):
        if found.name != EXEMPT and not found.name.startswith(f"{EXEMPT}.") and not found.name.endswith("__main__"):
            importlib.import_module(found.name)
            modules.append(found.name)
    after = look()
    report: dict[str, list[str]] = {"modules": modules, "names asked for": names_asked_for}
    for kind, values in after.items():
        keys = values.keys() | before[kind].keys()
        report[kind] = sorted(key for key in keys if (values.get(key) or None) != (before[kind].get(key) or None))
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])

"""Decides whether a foreign `.pt` may be loaded: one that carries code is refused before anything in it runs."""

from __future__ import annotations

import _compat_pickle
import importlib
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any, Self

from steadyolo.errors import UserError

_FUNCTIONS = {
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_parameter_with_state"),
    ("torch.serialization", "_get_layout"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
}
_CLASSES = {
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("builtins", "set"),
    ("builtins", "frozenset"),
    ("builtins", "slice"),
    ("builtins", "complex"),
    ("builtins", "bytearray"),
    ("types", "SimpleNamespace"),
    ("argparse", "Namespace"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib", "PureWindowsPath"),
    ("ultralytics.utils", "IterableSimpleNamespace"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torchvision.transforms.functional", "InterpolationMode"),  # classifiers carry how their pictures are prepared
    *(
        ("torchvision.transforms.transforms", name)
        for name in ("Compose", "Resize", "CenterCrop", "ToTensor", "Normalize")
    ),
}
_MODULE_PACKAGES = ("torch.nn.modules.", "ultralytics.nn.", "ultralytics.utils.")


def check_weights(path: Path) -> None:
    """Raise `UserError` unless `path` is a checkpoint made of tensors, plain values and known model classes only.

    The file's pickle is read with inert stand-ins for everything that it names, so that nothing in it runs; the
    tensors' bytes are not read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
            if not pickles:
                raise _not_weights(path, "it holds no data.pkl")
            if len(pickles) > 1 or len(set(names)) < len(names):  # what is looked at must be what is loaded
                raise _not_weights(path, "it holds several files of one name")
            inspector = _Inspector(io.BytesIO(archive.read(pickles[0])))
        content = inspector.load()
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  # bytes from anywhere: whatever they raise, they are no checkpoint
        raise _not_weights(path, f"{type(error).__name__}: {error}") from None
    if inspector.refused:
        raise UserError(
            f"{path} would run code that is not part of a model: {', '.join(sorted(inspector.refused)[:5])}",
            remedy="do not load it; ask its author for plain weights, or train from a model yaml",
        )
    if not isinstance(content, dict) or not {"model", "ema"} & content.keys():
        raise _not_weights(path, "it holds no model")


def _not_weights(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} is not a model checkpoint: {why}",
        remedy="give a .pt that Ultralytics or steadyolo wrote, or a model yaml such as yolo11n.yaml",
    )


class _Inert:
    """Stands in for whatever a pickle names: takes any arguments, state and items, and does nothing with them."""

    def __new__(cls, *_: Any, **__: Any) -> Self:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def __call__(self, *_: Any, **__: Any) -> _Inert:
        return _Inert()

    def __setstate__(self, _: Any) -> None: ...
    def __setitem__(self, _: Any, __: Any) -> None: ...
    def append(self, _: Any) -> None: ...
    def extend(self, _: Any) -> None: ...
    def add(self, _: Any) -> None: ...


class _BuiltFromData(type):
    """Tells of being called: a module's own pickle makes it empty and fills it, only a forged one calls its class."""

    refused: set[str]

    def __call__(cls, *_: Any, **__: Any) -> Any:
        cls.refused.add(f"a call of {cls.__name__}")
        return _Inert()


class _Inspector(pickle.Unpickler):
    """Notes every name that a pickle would import; imports none of them."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.refused: set[str] = set()

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        # torch.save writes protocol 2, whose names are Python 2's.
        module_name, global_name = _compat_pickle.NAME_MAPPING.get(
            (module_name, global_name), (module_name, global_name)
        )
        module_name = _compat_pickle.IMPORT_MAPPING.get(module_name, module_name)
        full_name = f"{module_name}.{global_name}"
        if not _is_admitted(module_name, global_name):
            self.refused.add(full_name)
            return _Inert
        if (module_name, global_name) in _FUNCTIONS | _CLASSES:
            return _Inert
        return _BuiltFromData(full_name, (_Inert,), {"refused": self.refused})

    def persistent_load(self, pid: Any) -> Any:
        return _Inert()


def _is_admitted(module: str, name: str) -> bool:
    if (module, name) in _FUNCTIONS | _CLASSES:
        return True
    if module in {"torch", "torch.storage"}:  # named, never called: a storage's class, a number's type
        return name.endswith("Storage") or name in {"float16", "float32", "float64", "bfloat16", "int64", "uint8"}
    return module.startswith(_MODULE_PACKAGES) and "." not in name and _is_module_class(module, name)


def _is_module_class(module: str, name: str) -> bool:
    """True for a network module's class: those are built from data, while a function would be called with it."""
    from torch import nn

    try:
        found: Any = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return False
    return isinstance(found, type) and issubclass(found, nn.Module)


def task_of(model: str) -> str | None:
    """The task that a checkpoint's or a model yaml's last layer stands for; None where it cannot be told."""
    path = Path(model)
    if path.suffix != ".pt" or not path.is_file():
        return None
    check_weights(path)
    from ultralytics.nn.tasks import load_checkpoint

    return str(load_checkpoint(path)[0].task)

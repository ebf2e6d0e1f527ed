"""Every number in a config says what it counts or measures."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import pkgutil
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import steadyolo.spec

UNIT = re.compile(r"num_\w+|\w+_(s|ms|bytes|px|share|deg|hz)")


def numeric(annotation: Any) -> bool:
    """True when a value of this type may be a number. A boolean is none."""
    if annotation in (int, float):
        return True
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return any(numeric(part) for part in typing.get_args(annotation))
    return False


def config_types() -> Iterator[type]:
    for module_info in pkgutil.walk_packages(steadyolo.spec.__path__, "steadyolo.spec."):
        module = importlib.import_module(module_info.name)
        for value in vars(module).values():
            if not isinstance(value, type) or value.__module__ != module.__name__:
                continue
            if dataclasses.is_dataclass(value):
                yield value


def ultralytics_names() -> set[str]:
    """The argument names that users know from Ultralytics, read without importing it."""
    spec = importlib.util.find_spec("ultralytics")
    assert spec and spec.origin
    return set(yaml.safe_load((Path(spec.origin).parent / "cfg" / "default.yaml").read_text(encoding="utf-8")))


def unnamed_numbers(config: type, known: set[str]) -> list[str]:
    """Fields of `config` that hold a number and do not say of what."""
    hints = typing.get_type_hints(config, include_extras=True)
    return [name for name, kind in hints.items() if numeric(kind) and not UNIT.fullmatch(name) and name not in known]


@pytest.mark.parametrize("config", list(config_types()), ids=lambda config: config.__qualname__)
def test_numbers_in_a_config_carry_their_unit(config: type) -> None:
    wrong = unnamed_numbers(config, ultralytics_names())
    assert not wrong, (
        f"{config.__qualname__}: end {wrong} in a unit such as _s, _bytes, _px or _share, or start with num_"
    )


def test_a_number_without_unit_is_noticed() -> None:
    @dataclasses.dataclass
    class Config:
        timeout: float | None
        timeout_s: float
        num_tries: int
        epochs: int
        verbose: bool

    assert unnamed_numbers(Config, {"epochs"}) == ["timeout"]


def test_there_is_a_config_to_look_at() -> None:
    assert list(config_types())

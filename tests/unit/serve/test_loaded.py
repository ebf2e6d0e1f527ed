"""An engine that a worker loaded."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from steadyolo.serve.engine import Engine
from steadyolo.serve.loaded import load
from steadyolo.serve.place import LoadSettings
from steadyolo.serve.served_model import ServedModel
from steadyolo.serve.session import Images, Output, SessionSettings


class Untouched:
    """A session that nobody has used yet. OpenVINO's compiles to know its label."""

    @property
    def label(self) -> str:
        raise AssertionError("it was asked for its label")

    def run(self, images: Images) -> list[Output]:
        raise AssertionError("it ran")

    def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize("check", [False, True])
def test_without_warm_up_and_check_nothing_is_computed(served: Callable[..., ServedModel], check: bool) -> None:
    model, settings = served("detect"), LoadSettings(warm_up=False, check=check)

    def told() -> dict[str, object]:
        return load(
            "m", model.folder, model.version, SessionSettings(), settings, lambda model, _: Engine(model, Untouched())
        ).told()

    if check:
        with pytest.raises(AssertionError, match="it ran"):
            told()
    else:
        assert told()["session"] == "not warmed"

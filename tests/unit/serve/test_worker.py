"""What a worker does in its threads."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import pytest

from steadyolo.adapters.runtimes.opening import open_session
from steadyolo.serve.engine import Engine
from steadyolo.serve.place import LoadSettings
from steadyolo.serve.served_model import ServedModel
from steadyolo.serve.service import DetectOptions
from steadyolo.serve.session import Output, SessionSettings
from steadyolo.serve.worker import Worker


def test_the_first_load_warms_each_hand_and_a_later_one_leaves_them_to_requests(
    served: Callable[..., ServedModel],
) -> None:
    at_worst: list[str] = []  # threads in which every box there could be was found

    class Told(Engine):
        def finish(self, outputs: Sequence[Output], prepared: Any, options: DetectOptions) -> Any:
            if options.conf < DetectOptions().conf:
                at_worst.append(threading.current_thread().name)
            return super().finish(outputs, prepared, options)

    model = served("detect")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker = Worker(theirs, lambda model, settings: Told(model, open_session(model, settings)))
        worker._lane.start()
        session = asdict(SessionSettings(runtime="onnxruntime", num_threads=1))
        asked = {"folder": str(model.folder), "version": model.version, "session": session}
        asked["settings"] = asdict(LoadSettings(warm_limit_s=0.5))
        worker._load({"number": 1, "key": "one", **asked})
        assert sorted(at_worst) == ["hand_0", "hand_1"]
        worker._load({"number": 2, "key": "two", **asked})
        assert at_worst[2:] == [threading.current_thread().name]


def test_what_fails_in_a_hand_is_raised_and_leaves_the_hands_free() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker = Worker(theirs, lambda *_: pytest.fail("nothing is opened"))
        with pytest.raises(ZeroDivisionError):
            worker._in_each_hand(lambda: 1 // 0)
        names: list[str] = []
        worker._in_each_hand(lambda: names.append(threading.current_thread().name))
        assert sorted(names) == ["hand_0", "hand_1"]

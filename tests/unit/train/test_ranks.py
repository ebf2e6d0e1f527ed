"""What processes of one run say to each other, in two processes that really do; and what they hear when one is gone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from steadyolo.errors import UserError
from steadyolo.train import ranks as module
from steadyolo.train.ranks import Alone, Group, RankLost, join

CHILDREN = multiprocessing.get_context("forkserver")


class Asked:
    """A request to stop that nobody has made yet."""

    def __init__(self) -> None:
        self.requested = False
        self.name = ""

    def request(self, name: str) -> None:
        self.requested, self.name = True, name


def together(
    act: Callable[[Group, Asked], Any], folder: Path, *, limit_s: float = 60.0, beat_s: float = 0.5
) -> list[str]:
    """Call `act` in both of two ranks. Returns what each of them wrote down: its result, or how it ended."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = [
        CHILDREN.Process(target=_be, args=(rank, store.port, act, folder, limit_s, beat_s)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60.0)
        assert process.exitcode is not None, "still waiting for the other one"
    return [(folder / str(rank)).read_text() if (folder / str(rank)).exists() else "" for rank in range(2)]


def _be(rank: int, port: int, act: Callable[[Group, Asked], Any], folder: Path, limit_s: float, beat_s: float) -> None:
    module._LIMIT_S, module._BEAT_S = limit_s, beat_s
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    stop = Asked()
    group = Group(environment(rank, port), stop)
    try:
        result = act(group, stop)
    except RankLost as error:
        result = f"lost: {error.message}"
        group.leave(1)
    except SystemExit as error:
        result = f"exit: {error.code}"
    else:
        group.leave(0)
    (folder / str(rank)).write_text(str(result))


def environment(rank: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


def talk(group: Group, stop: Asked) -> object:
    """Every word once. Buckets are so small that tensors span several of them."""
    module._BUCKET_BYTES = 64
    mine = group.rank + 1.0
    tensors = [torch.full((3, 2, 4, 4), mine).contiguous(memory_format=torch.channels_last), torch.full((5,), mine)]
    tensors += [torch.full((2,), mine, dtype=torch.float64), torch.tensor(mine)]
    group.sum_(tensors)
    sent = torch.full((2, 2), mine)
    group.broadcast_([sent])
    led = group.lead(lambda: time.sleep(2 * module._BEAT_S) or "done")
    return (
        [float(tensor.unique()) for tensor in tensors],
        float(sent.unique()),
        group.any(group.rank == 1, False),
        group.told({"a": [1.5, None]} if group.rank == 0 else None),
        led,
    )


def test_all_hear_the_same(tmp_path: Path) -> None:
    said = ([3.0] * 4, 1.0, (True, False), {"a": [1.5, None]})
    assert together(talk, tmp_path) == [str((*said, "done")), str((*said, None))]


def stop_while_the_other_works(group: Group, stop: Asked) -> object:
    if group.rank == 1:
        stop.request("SIGTERM")

    def work() -> None:
        while not stop.requested:
            time.sleep(0.01)

    group.lead(work)
    return stop.name


def test_a_stop_reaches_the_one_that_works(tmp_path: Path) -> None:
    assert together(stop_while_the_other_works, tmp_path) == ["another rank's signal", "SIGTERM"]


def work_for_longer_than_anybody_waits(group: Group, stop: Asked) -> object:
    return group.lead(lambda: time.sleep(3.0))


@pytest.mark.parametrize(("beat_s", "is_survived"), [(0.1, True), (60.0, False)])
def test_work_may_take_long_because_it_is_heard_of(beat_s: float, is_survived: bool, tmp_path: Path) -> None:
    said = together(work_for_longer_than_anybody_waits, tmp_path, limit_s=1.0, beat_s=beat_s)
    assert (said == ["None", "None"]) == is_survived, said


def be_killed(group: Group, stop: Asked) -> object:
    if group.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    started = time.monotonic()
    try:
        return group.any(True)
    finally:
        assert time.monotonic() - started < 5.0


def test_one_that_is_killed_is_missed_at_once(tmp_path: Path) -> None:
    said, _ = together(be_killed, tmp_path)
    assert said.startswith("lost: process 0 of 2 cannot go on: another one of this run ended without a word")


def fail_in_rank_1(group: Group, stop: Asked) -> object:
    if group.rank == 1:
        group.leave(2)
        return "failed"
    return group.any(True)


def test_one_that_ends_by_itself_is_named(tmp_path: Path) -> None:
    said, _ = together(fail_in_rank_1, tmp_path)
    assert said == "lost: process 0 of 2 cannot go on: process 1 ended with exit code 2"


def fail_in_the_leaders_work(group: Group, stop: Asked) -> object:
    def work() -> None:
        raise ZeroDivisionError

    try:
        return group.lead(work)
    except ZeroDivisionError:
        group.leave(2)
        return "told why"


def test_those_that_follow_end_as_their_leader_does(tmp_path: Path) -> None:
    """And say nothing: it has told what went wrong."""
    assert together(fail_in_the_leaders_work, tmp_path) == ["told why", "exit: 2"]


def test_one_process_talks_to_nobody() -> None:
    alone = join({}, Asked())
    assert isinstance(alone, Alone)
    tensor = torch.ones(2)
    alone.sum_([tensor])
    assert tensor.tolist() == [1.0, 1.0]
    assert alone.any(True, False) == (True, False)
    assert alone.lead(lambda: "done") == alone.told("done") == "done"
    assert isinstance(join({"WORLD_SIZE": "1", "RANK": "0"}, Asked()), Alone)  # torchrun with one process


@pytest.mark.parametrize("missing", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_an_environment_that_tells_half_of_it_is_refused(missing: str) -> None:
    environ = {name: value for name, value in environment(0, 1).items() if name != missing}
    with pytest.raises(UserError, match=missing):
        join(environ, Asked())

"""`Ranks`: the processes that train one run together, and the few words that they exchange.

All of them call the same methods in the same order. Small words go over the host (gloo), tensors of an accelerator over
its own network (NCCL). Nothing here runs inside a backward pass, so that a rank which fails there can still say so.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # documented, not declared

from steadyolo.errors import SteadyError, UserError

_Result = TypeVar("_Result")
_LIMIT_S = 600.0  # a rank that says nothing for so long is lost; one whose process ends is missed at once
_BEAT_S = 0.5  # how often a rank that works alone says that it is still there
_BUCKET_BYTES = 32 << 20
_numbers = itertools.count()  # groups of this process, so that one's keys never meet another's


class RankLost(SteadyError):
    """Another process of the run is gone, or says nothing any more."""


class Stop(Protocol):
    """A request to stop, which reaches every rank."""

    requested: bool

    def request(self, name: str) -> None: ...


class Ranks(Protocol):
    """The processes of a run. Rank 0 leads: it alone keeps, scores and shows. Raises: RankLost."""

    rank: int  # this process's, from 0
    count: int

    def any(self, *flags: bool) -> tuple[bool, ...]: ...  # for each flag, whether a rank says so
    def sum_(self, tensors: Sequence[Tensor]) -> None: ...  # each becomes its sum over the ranks: equal bits on all
    def broadcast_(self, tensors: Sequence[Tensor]) -> None: ...  # each becomes what rank 0 has
    def told(self, value: Any) -> Any: ...  # what rank 0 gave; JSON
    def lead(self, work: Callable[[], _Result]) -> _Result | None: ...  # done by rank 0, however long it takes
    def leave(self, exit_code: int) -> None: ...  # the last word: whoever waits for this rank knows why it ended


class Alone:
    """One process: nobody to talk to."""

    rank, count = 0, 1

    def any(self, *flags: bool) -> tuple[bool, ...]:
        return flags

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Leave them as they are."""

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Leave them as they are."""

    def told(self, value: Any) -> Any:
        return value

    def lead(self, work: Callable[[], _Result]) -> _Result | None:
        return work()

    def leave(self, exit_code: int) -> None:
        """Nobody waits."""


class Group:
    """Several processes, joined through torchrun's environment variables.

    While a rank waits for the leader's work, a stop that any of them is asked for reaches all the others.
    """

    def __init__(self, environ: Mapping[str, str], stop: Stop) -> None:
        """Returns when all ranks are there. Raises: UserError for an environment that names no place to meet."""
        try:
            self.rank, self.count = int(environ["RANK"]), int(environ["WORLD_SIZE"])
            address, port = environ["MASTER_ADDR"], int(environ["MASTER_PORT"])
        except (KeyError, ValueError) as error:
            raise UserError(
                f"WORLD_SIZE={environ['WORLD_SIZE']} means several processes, but what tells each its place (RANK, "
                f"MASTER_ADDR, MASTER_PORT) is missing or wrong: {error}",
                remedy="start them with torchrun, or unset WORLD_SIZE to train in one process",
            ) from None
        self._stop = stop
        self._has_left = False
        self._limit = timedelta(seconds=_LIMIT_S)
        self._buckets: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._device_group: Any = None
        is_hosted = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        attempt = f"{environ.get('TORCHELASTIC_RUN_ID', '')}/{environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        with self._noticing_loss(told=False):
            meeting = _meeting(address, port, self.count, self.rank == 0 and not is_hosted)
            self._store = PrefixStore(f"steadyolo/{attempt}/{next(_numbers)}", meeting)
            self._owns_default = not dist.is_initialized()
            if self._owns_default:
                dist.init_process_group(
                    "gloo", store=self._store, rank=self.rank, world_size=self.count, timeout=self._limit
                )
                self._host: Any = None  # the default group
            else:  # a script's own
                self._host = dist.new_group(backend="gloo", timeout=self._limit)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether a rank says so."""
        votes = torch.tensor(flags, dtype=torch.uint8)
        with self._noticing_loss():
            dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self._host)
        return tuple(bool(vote) for vote in votes.tolist())

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Add up over the ranks."""
        self._exchange(tensors, lambda bucket: dist.all_reduce(bucket, group=self._group_of(bucket)))

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Replace by what rank 0 has."""
        self._exchange(tensors, lambda bucket: dist.broadcast(bucket, src=0, group=self._group_of(bucket)))

    def told(self, value: Any) -> Any:
        """What rank 0 gave, which has to be JSON."""
        text = json.dumps(value).encode() if self.rank == 0 else b""
        size = torch.tensor([len(text)])
        with self._noticing_loss():
            dist.broadcast(size, src=0, group=self._host)
            said = torch.zeros(int(size), dtype=torch.uint8)
            if self.rank == 0:
                said.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
            dist.broadcast(said, src=0, group=self._host)
        return json.loads(bytes(said.tolist()))

    def lead(self, work: Callable[[], _Result]) -> _Result | None:
        """Have rank 0 do `work` while the others wait, however long it takes. None on the others.

        What `work` raises is raised on rank 0 only; the others miss it once it has left.
        """
        if self.rank:
            while not self._beat(finished=False):
                pass
            return None
        with self._beating():
            result = work()
        self._beat(finished=True)
        return result

    def leave(self, exit_code: int) -> None:
        """Say how this process ends, and hang up. Never raises; only the first time counts."""
        if self._has_left:
            return
        self._has_left = True
        with suppress(RuntimeError):
            self._store.set(f"left/{self.rank}", str(exit_code))
        if exit_code and self._device_group is not None:
            return  # an accelerator's group may wait for ranks that are gone; the end of the process frees it
        with suppress(RuntimeError):
            if self._owns_default:
                dist.destroy_process_group()
            else:
                dist.destroy_process_group(self._host)

    # --- parts of the above ---

    @contextmanager
    def _beating(self) -> Iterator[None]:
        """Tell the others, from a thread, that this rank is still at work. Raises what met the thread, afterwards."""
        done, met = threading.Event(), list[BaseException]()

        def beat() -> None:
            try:
                while not done.wait(_BEAT_S):
                    self._beat(finished=False)
            except BaseException as error:  # noqa: BLE001  # the thread's edge: raised where its work is waited for
                met.append(error)

        thread = threading.Thread(target=beat, name="steadyolo-beat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        if met:
            raise met[0]

    def _beat(self, *, finished: bool) -> bool:
        finished, asked = self.any(finished, self._stop.requested)
        if asked and not self._stop.requested:
            self._stop.request("another rank's signal")
        return finished

    def _exchange(self, tensors: Sequence[Tensor], send: Callable[[Tensor], object]) -> None:
        """Send tensors in flat buckets. These are kept: who has sent a model needs no memory to send its gradient."""
        for bucket, pieces in self._packed(tensors):
            for place, tensor in pieces:
                place.copy_(tensor)
            with self._noticing_loss():
                send(bucket)
            for place, tensor in pieces:
                tensor.copy_(place)

    def _packed(self, tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, list[tuple[Tensor, Tensor]]]]:
        """Tensors by bucketful, each with its place in the bucket, which is used up before the next is asked for."""
        kinds = dict.fromkeys((tensor.device, tensor.dtype) for tensor in tensors)
        for kind in kinds:
            mine = [tensor for tensor in tensors if (tensor.device, tensor.dtype) == kind]
            sizes = [tensor.numel() for tensor in mine]
            room = self._bucket(kind, max(*sizes, min(sum(sizes), _BUCKET_BYTES // kind[1].itemsize)))
            pieces, used = list[tuple[Tensor, Tensor]](), 0
            for tensor in mine:
                if used + tensor.numel() > room.numel():
                    yield room[:used], pieces
                    pieces, used = [], 0
                pieces.append((room[used : used + tensor.numel()].view(tensor.shape), tensor))
                used += tensor.numel()
            yield room[:used], pieces

    def _bucket(self, kind: tuple[torch.device, torch.dtype], least: int) -> Tensor:
        held = self._buckets.get(kind)
        if held is None or held.numel() < least:
            device, dtype = kind
            held = self._buckets[kind] = torch.empty(least, device=device, dtype=dtype)
        return held

    def _group_of(self, tensor: Tensor) -> Any:
        if tensor.device.type == "cpu":
            return self._host
        if self._device_group is None:
            self._device_group = dist.new_group(
                backend="nccl" if dist.is_nccl_available() else "gloo", timeout=self._limit
            )
        return self._device_group

    @contextmanager
    def _noticing_loss(self, *, told: bool = True) -> Iterator[None]:
        """Turn what the network says when a peer is gone into what is known about it.

        Raises: SystemExit where rank 0 ended by itself and has told why; RankLost otherwise.
        """
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            left = self._left() if told else {}
            if self.rank and 0 in left:
                raise SystemExit(left[0]) from error
            raise RankLost(
                f"process {self.rank} of {self.count} cannot go on: {_who(left)}",
                remedy="look at what that process printed last, then run steadyolo resume with this run's folder",
            ) from error

    def _left(self) -> dict[int, int]:
        """Exit codes of the other ranks that ended by themselves."""
        with suppress(RuntimeError):  # the place to meet may have gone with its process
            others = [rank for rank in range(self.count) if rank != self.rank and self._store.check([f"left/{rank}"])]
            return {rank: int(self._store.get(f"left/{rank}")) for rank in others}
        return {}


def join(environ: Mapping[str, str], stop: Stop) -> Alone | Group:
    """The ranks that `environ` puts this process among: torchrun's variables, or none."""
    return Group(environ, stop) if is_among_ranks(environ) else Alone()


def is_among_ranks(environ: Mapping[str, str]) -> bool:
    """Whether this process was started as one of several."""
    return environ.get("WORLD_SIZE", "1") not in {"", "0", "1"}


def _who(left: Mapping[int, int]) -> str:
    if not left:
        return "another one of this run ended without a word, or has not answered in time"
    return " and ".join(f"process {rank} ended with exit code {code}" for rank, code in left.items())


@cache  # the one that hosts it has to live as long as its process
def _meeting(address: str, port: int, count: int, is_host: bool) -> TCPStore:
    return TCPStore(
        address, port, count, is_master=is_host, wait_for_workers=False, timeout=timedelta(seconds=_LIMIT_S)
    )

"""`Scale`: weighs each tensor storage that a computation takes, without computing anything.

It stands above a `FakeTensorMode`: operators run on tensors that have a shape but no memory, and each storage is
counted from the operator that makes it to the moment when the last tensor or saved variable lets go of it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from steadyolo.plan.memory import Kind
from steadyolo.plan.trace import BEFORE, Move

Workspace = Callable[[Any, tuple[Any, ...], Any], int]  # bytes that an operator needs beside its results


def no_workspace(func: Any, args: tuple[Any, ...], out: Any) -> int:
    """For a device whose kernels are asked elsewhere what they take."""
    return 0


class Scale(TorchDispatchMode):
    """Counts storages while it is entered. `at` says what is being done; `name` tells what a tensor is kept as."""

    def __init__(self, workspace: Workspace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._workspace = workspace
        self._moves: list[tuple[int, int, str]] = []  # storage, bytes, moment
        self._kinds: dict[int, Kind] = {}
        self._held: dict[int, tuple[weakref.ref[Any], int, int]] = {}  # by address: storage number and bytes
        self._count = 0
        self._kind: Kind = "activations"
        self._moment = ""

    def at(self, moment: str, kind: Kind) -> None:
        """What is taken from now on is of `kind`, unless it is named something else later."""
        self._moment, self._kind = moment, kind

    def name(self, tensors: Iterable[Tensor], kind: Kind) -> None:
        """Say what tensors are kept as; those that nobody has counted yet are counted now."""
        for tensor in tensors:
            if not tensor.untyped_storage().nbytes():
                continue
            self._weigh(tensor)
            self._kinds[self._held[tensor.untyped_storage()._cdata][1]] = kind

    def restart(self) -> None:
        """Forget how what is held came about: the moves begin with taking all of it."""
        for address, (ref, _, _) in list(self._held.items()):
            if ref() is None:
                del self._held[address]
        self._moves = [(number, size, BEFORE) for _, number, size in self._held.values()]

    def moves(self) -> tuple[Move, ...]:
        """What was taken and given back since the start."""
        return tuple(Move(number, size, self._kinds[number], moment) for number, size, moment in self._moves)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._weigh(value)
        extra = self._workspace(func, args, out)
        if extra:
            self._count += 1
            self._kinds[self._count] = "workspace"
            self._moves += [(self._count, extra, self._moment), (self._count, -extra, self._moment)]
        return out

    def _weigh(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if not storage.nbytes() or (address in self._held and self._held[address][0]() is not None):
            return
        self._count += 1
        number, size = self._count, storage.nbytes()

        def gone(ref: weakref.ref[Any]) -> None:
            if address in self._held and self._held[address][0] is ref:
                del self._held[address]
            self._moves.append((number, -size, self._moment))

        self._held[address] = weakref.ref(storage, gone), number, size
        self._kinds[number] = self._kind
        self._moves.append((number, size, self._moment))

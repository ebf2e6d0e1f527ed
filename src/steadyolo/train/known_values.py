"""`KnownValues`: lets a computation on tensors without memory go on where it asks for values.

Small tensors whose values follow from what is known (labels, shapes, constants) are computed for real beside the
fake ones. Where a count depends on what is not known, such as a network's predictions, it is assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

_SMALL = 2**21  # elements: milliseconds for an operator, and the labels of every batch
_aten = torch.ops.aten


def _overloads(name: str) -> list[Any]:
    operator = getattr(_aten, name)
    found = [getattr(operator, each) for each in operator.overloads()]
    return [overload for overload in found if not overload._schema.is_mutable]


class KnownValues(TorchDispatchMode):
    """Stands above the mode that makes tensors fake.

    `count_true(shape)` is the number of true elements that is assumed of a mask of unknown values. Unknown numbers are
    taken to be true, one (whole numbers) or zero.
    """

    def __init__(self, count_true: Callable[[tuple[int, ...]], int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._count_true = count_true
        self._values: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._answers: Mapping[Any, Callable[..., Any]] = {
            _aten._local_scalar_dense.default: self._number,
            _aten.nonzero.default: self._nonzero,
            _aten.index.Tensor: self._index,
            _aten.index_put.default: self._index_put,
            _aten.index_put_.default: self._index_put,
            _aten._index_put_impl_.default: self._index_put,
            _aten.masked_select.default: lambda func, x, mask: self._index(_aten.index.Tensor, x, [mask]),
            _aten._unique2.default: self._unique,
            _aten.bincount.default: self._bincount,
        }

    def know(self, fake: Tensor, value: Tensor) -> Tensor:
        """Remember what `fake` holds."""
        self._values[fake] = value
        return fake

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.name() == "torchvision::nms":
            return torch.empty(len(args[0]), dtype=torch.int64, device=args[0].device)  # nothing overlaps
        answer = self._answers.get(func)
        if answer is not None:
            return answer(func, *args, **kwargs)
        out = func(*args, **kwargs)
        self._follow(func, args, kwargs, out)
        return out

    def _follow(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Compute for real what follows from known values."""
        results = [value for value in tree_leaves(out) if isinstance(value, Tensor)]
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        known = func in _CONSTANT or (given and all(self._value(value) is not None for value in given))
        if not results or not known or max(value.numel() for value in results) > _SMALL:
            for value in results:
                self._values.pop(value, None)  # written to with what is not known
            return
        with _disable_current_modes():
            real = func(*self._real(args), **self._real(kwargs))
        for fake, value in zip(results, [v for v in tree_leaves(real) if isinstance(v, Tensor)], strict=True):
            self._values[fake] = value

    def _value(self, tensor: Tensor) -> Tensor | None:
        if not isinstance(tensor, FakeTensor):
            return tensor
        value: Tensor | None = self._values.get(tensor)
        return value

    def _real(self, tree: Any) -> Any:
        return tree_map_only(Tensor, self._stand_in, tree)

    def _stand_in(self, tensor: Tensor) -> Tensor:
        value = self._value(tensor)
        if value is not None:
            return value
        return torch.empty((), dtype=tensor.dtype).expand(tensor.shape)  # only its shape will be looked at

    # -- operators whose result depends on values ------------------------------------------------------------------

    def _number(self, func: Any, tensor: Tensor) -> Any:
        value = self._value(tensor)
        if value is not None:
            with _disable_current_modes():
                return value.item()
        return True if tensor.dtype == torch.bool else 0.0 if tensor.is_floating_point() else 1

    def _nonzero(self, func: Any, tensor: Tensor) -> Tensor:
        value = self._value(tensor)
        if value is None:
            count = self._count_true(tuple(tensor.shape))
            return torch.empty((count, tensor.ndim), dtype=torch.int64, device=tensor.device)
        with _disable_current_modes():
            places = value.nonzero()
        return self.know(torch.empty(places.shape, dtype=torch.int64, device=tensor.device), places)

    def _expanded(self, indices: Any) -> list[Tensor | None]:
        """Indices with each mask replaced by the places where it is true."""
        places: list[Tensor | None] = []
        for index in indices:
            if index is None or index.dtype not in {torch.bool, torch.uint8}:
                places.append(index)
            else:
                places += self._nonzero(None, index).unbind(1)
        return places

    def _index(self, func: Any, x: Tensor, indices: Any) -> Tensor:
        places = self._expanded(indices)
        out: Tensor = func(x, places)
        self._follow(func, (x, indices), {}, out)
        return out

    def _index_put(self, func: Any, x: Tensor, indices: Any, values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        places = self._expanded(indices)
        out: Tensor = func(x, places, values, *args, **kwargs)
        self._follow(func, (x, indices, values, *args), kwargs, out)
        return out

    def _unique(
        self, func: Any, x: Tensor, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        value = self._value(x)
        shapes = [x.shape if return_inverse else (0,), (x.numel(),) if return_counts else (0,)]
        if value is None:  # at most as many as there are elements
            return (x.new_empty(x.numel()), *(x.new_empty(shape, dtype=torch.int64) for shape in shapes))  # type: ignore[return-value]
        with _disable_current_modes():
            real = func(value, sorted, return_inverse, return_counts)
        made = [self.know(x.new_empty(v.shape, dtype=v.dtype), v) for v in real]
        return made[0], made[1], made[2]

    def _bincount(self, func: Any, x: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
        value = self._value(x)
        with _disable_current_modes():
            if value is None:  # evenly spread
                real = torch.full((minlength,), -(-x.numel() // max(minlength, 1)), dtype=torch.int64)
            else:
                real = torch.bincount(value, minlength=minlength)
        return self.know(x.new_empty(real.shape, dtype=torch.int64), real)


# Operators whose result holds the same whatever the values of tensors that they are given.
_CREATE = "arange zeros ones full scalar_tensor new_zeros new_ones new_full"
_CONSTANT = frozenset(overload for name in _CREATE.split() for overload in _overloads(name))

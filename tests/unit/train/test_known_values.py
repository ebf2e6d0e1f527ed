"""A computation on tensors without memory goes on where it asks for values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from steadyolo.train.known_values import KnownValues


@contextmanager
def staged(count: int = 7) -> Iterator[KnownValues]:
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield stack.enter_context(KnownValues(lambda shape: count))


def test_labels_give_the_counts_that_they_have() -> None:
    owner = torch.tensor([0.0, 0.0, 0.0, 2.0])
    with staged() as values:
        fake = values.know(torch.empty(4), owner)
        _, counts = fake.long().unique(return_counts=True)
        padded = torch.zeros(3, counts.max(), 5)  # type: ignore[call-overload]
        assert padded.shape == (3, 3, 5)
        assert fake[fake == 0].shape == (3,)
        assert torch.bincount(fake.long(), minlength=3).tolist() == [3, 0, 1]


def test_what_is_written_into_known_values_is_followed() -> None:
    numbers = torch.tensor([1.0, 2.0, 3.0])
    with staged() as values:
        fake = values.know(torch.empty(3), numbers)
        fake[1:].mul_(10)
        assert fake.tolist() == [1.0, 20.0, 30.0]
        fake.add_(torch.empty(3))  # nobody knows
        assert float(fake[0]) == 0.0


def test_counts_of_unknown_masks_are_assumed() -> None:
    with staged(count=7) as values:
        scores = torch.empty(100, 4)
        mask = scores[:, 0] > 0.5
        assert mask.nonzero().shape == (7, 1)
        assert scores[mask].shape == (7, 4)
        scores[mask] = 0.0
        assert bool(mask.any())
        assert mask.sum().item() == 1
        assert values is not None


def test_constants_are_known_beside_tensors_that_are_not() -> None:
    with staged():
        unknown = torch.empty(5, 3)
        assert unknown.new_full((2,), 4.0).sum().item() == 8.0
        assert torch.arange(4).sum().item() == 6

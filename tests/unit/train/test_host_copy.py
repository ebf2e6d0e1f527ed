from __future__ import annotations

from threading import Event

import pytest
import torch

from steadyolo.train.host_copy import HostCopies


def groups() -> dict[str, dict[str, torch.Tensor]]:
    image = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)
    return {
        "model": {
            "weight": image.to(memory_format=torch.channels_last),
            "half": torch.ones(3, dtype=torch.bfloat16),
            "count": torch.tensor(7),
            "strided": torch.arange(12.0).reshape(3, 4)[:, ::2],
            "leaf": torch.nn.Parameter(torch.ones(2)),
            "empty": torch.zeros(0, 4),
        },
        "gradients": {},
    }


def test_a_copy_is_equal_and_nobody_elses() -> None:
    given = groups()
    copied = HostCopies().take(given)
    assert set(copied) == {"model"}, "an empty group is left out"
    for name, tensor in given["model"].items():
        assert torch.equal(copied["model"][name], tensor.detach()), name
        assert copied["model"][name].dtype == tensor.dtype
        assert not copied["model"][name].requires_grad
    with torch.no_grad():
        for tensor in given["model"].values():
            tensor.zero_()
    for name, tensor in groups()["model"].items():
        assert torch.equal(copied["model"][name], tensor.detach()), name


def test_buffers_are_used_again_only_after_they_were_given_back() -> None:
    copies = HostCopies()
    first = copies.take(groups())
    second = copies.take(groups())
    assert first["model"]["weight"].data_ptr() != second["model"]["weight"].data_ptr()
    address = first["model"]["weight"].data_ptr()
    copies.release(first)
    assert copies.take(groups())["model"]["weight"].data_ptr() == address


@pytest.mark.parametrize("shape", [(2, 3), (4, 4)])
def test_tensors_of_another_shape_get_other_buffers(shape: tuple[int, int]) -> None:
    copies = HostCopies()
    copies.release(copies.take({"optimizer": {"m": torch.zeros(2, 3)}}))
    changed = torch.ones(shape)
    assert torch.equal(copies.take({"optimizer": {"m": changed}})["optimizer"]["m"], changed)


def test_what_changes_at_once_is_copied_at_once_and_the_rest_before_wait_returns() -> None:
    copies = HostCopies()
    given = {"model": {"mean": torch.zeros(3), "weight": torch.zeros(1 << 20)}, "gradients": {"weight": torch.zeros(3)}}
    taken: list[dict[str, dict[str, torch.Tensor]]] = []
    copies.begin(given, at_once={"model/mean", "gradients/weight"}, then=taken.append)
    given["model"]["mean"].fill_(1.0)
    given["gradients"]["weight"].fill_(1.0)
    assert copies.wait() >= 0.0
    given["model"]["weight"].fill_(1.0)
    assert [float(tensor.sum()) for group in taken[0].values() for tensor in group.values()] == [0.0, 0.0, 0.0]
    assert list(taken[0]["model"]) == ["mean", "weight"], "the order of names is that of the source"


def test_what_goes_wrong_in_the_background_is_raised_where_it_is_waited_for() -> None:
    def fail(_: object) -> None:
        raise OSError("no")

    copies = HostCopies()
    copies.begin(groups(), at_once=(), then=fail)
    with pytest.raises(OSError, match="no"):
        copies.wait()
    assert copies.wait() >= 0.0


def test_a_copy_begun_during_another_comes_after_it_and_nobody_waits() -> None:
    copies = HostCopies()
    order: list[str] = []
    may_end = Event()

    def first(_: object) -> None:
        may_end.wait(10)
        order.append("first")

    copies.begin(groups(), at_once=(), then=first)
    copies.begin(groups(), at_once=(), then=lambda _: order.append("second"))  # would hang here if it waited
    assert order == []
    may_end.set()
    copies.wait()
    assert order == ["first", "second"]

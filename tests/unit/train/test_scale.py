"""Storages are weighed from the operator that makes them to the moment when the last one lets go."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from steadyolo.plan.trace import peak_of
from steadyolo.train.scale import Scale, no_workspace

MIB = 2**20


def test_a_storage_counts_once_and_until_its_last_view_is_gone() -> None:
    scale = Scale(no_workspace)
    with FakeTensorMode(), scale:
        whole = torch.empty(MIB, dtype=torch.uint8)
        part = whole[: MIB // 2].view(2, -1)
        del whole
        held = torch.empty(MIB, dtype=torch.uint8)
        del part
        last = torch.empty(MIB, dtype=torch.uint8)
    moves = [move.num_bytes for move in scale.moves()]
    assert moves == [MIB, MIB, -MIB, MIB]
    assert (held.numel(), last.numel()) == (MIB, MIB)


def test_what_autograd_keeps_for_the_backward_pass_counts() -> None:
    scale = Scale(no_workspace)
    with FakeTensorMode(), scale:
        weight = torch.nn.Parameter(torch.empty(256, 256))
        scale.at("forward", "activations")
        out = torch.empty(1024, 256).matmul(weight)  # the input is kept for the weight's gradient
        for _ in range(3):
            out = out.sigmoid()  # its result is kept
        forward = peak_of(scale.moves()).num_bytes
        out.sum().backward()
        assert weight.grad is not None
        scale.name([weight.grad], "gradients")
        del out
    held = sum(move.num_bytes for move in scale.moves())
    assert forward == 256 * 256 * 4 + 4 * 1024 * 256 * 4  # input and three results; nobody keeps the product
    assert held == 2 * 256 * 256 * 4  # the weight and its gradient
    assert {move.kind for move in scale.moves()} == {"activations", "gradients"}


def test_a_restart_begins_with_what_is_held() -> None:
    scale = Scale(no_workspace)
    with FakeTensorMode(), scale:
        kept = torch.empty(MIB, dtype=torch.uint8)
        gone = torch.empty(MIB, dtype=torch.uint8)
        scale.name([kept], "weights")
        del gone
        scale.restart()
        assert [(move.num_bytes, move.kind) for move in scale.moves()] == [(MIB, "weights")]
        del kept
    assert [move.num_bytes for move in scale.moves()] == [MIB, -MIB]


def test_what_an_operator_takes_inside_itself_comes_and_goes_beside_its_result() -> None:
    scale = Scale(lambda func, args, out: 3 * MIB if func is torch.ops.aten.neg.default else 0)
    with FakeTensorMode(), scale:
        x = torch.empty(MIB, dtype=torch.uint8)
        x = -x
    peak = peak_of(scale.moves())
    assert peak.num_bytes == 5 * MIB
    assert peak.by_kind["workspace"] == 3 * MIB

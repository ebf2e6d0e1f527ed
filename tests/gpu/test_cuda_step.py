"""What the CPU tests show, on a CUDA device: written to the same contracts, skipped where there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steadyolo.adapters.ultralytics.criterion import BranchLoss, PartLoss
from steadyolo.train.host_copy import HostCopies
from steadyolo.train.precision import Precision, choose_precision
from steadyolo.train.step import Stepper

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: nothing about CUDA is shown"),
]


def criterion(preds: Tensor, batch: dict[str, Any]) -> PartLoss:
    images = torch.tensor(float(len(batch["img"])), device=preds.device)
    loss = (preds.mean() - batch["target"]).square()
    return PartLoss({"main": BranchLoss(loss, images, images, None)}, {"loss": loss.detach()}, {"loss": "main"})


def stepper(model: nn.Module) -> Stepper:
    return Stepper(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True),
        criterion=criterion,
        split=lambda batch: [batch],
        precision=Precision("bf16", channels_last=True),
        scaler=torch.amp.GradScaler("cuda", enabled=False),
        branch_of=lambda _: "main",
    )


def batch(target: float) -> dict[str, Any]:
    return {"img": torch.ones(2, 3, 8, 8, device="cuda"), "target": torch.tensor(target, device="cuda")}


def test_a_step_does_not_wait_for_the_device_and_applies_nothing_that_is_not_finite() -> None:
    model = nn.Conv2d(3, 4, 3).cuda().to(memory_format=torch.channels_last)
    made = stepper(model)
    made.accumulate(batch(1.0))
    made.update()  # kernels and the optimizer's state are there now
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    bad, good = batch(float("nan")), batch(1.0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        outcome = made.accumulate(bad)
        finite = made.update()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not bool(outcome.finite)
    assert not bool(finite)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    made.accumulate(good)
    assert bool(made.update())
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_host_copy_is_complete_when_it_is_handed_over() -> None:
    tensors = {"model": {"weight": torch.randn(512, 512, device="cuda"), "count": torch.tensor(3, device="cuda")}}
    copied = HostCopies().take(tensors)
    for name, tensor in tensors["model"].items():
        assert copied["model"][name].device.type == "cpu"
        assert torch.equal(copied["model"][name], tensor.cpu()), name


def test_precision_is_mixed_by_default() -> None:
    device = torch.device("cuda")
    chosen = choose_precision(asked="auto", amp=True, amp_given=False, channels_last=None, device=device)
    assert chosen == Precision("fp16", channels_last=True)

from __future__ import annotations

import pytest
import torch
from torch import nn

from steadyolo.adapters.ultralytics.tensors import (
    gradients,
    groups_to_json,
    named_state,
    restore_gradients,
    restore_model,
    restore_optimizer,
)
from steadyolo.errors import UserError

OPTIMIZERS = {
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True),
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.1),
    "fused AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.1, fused=True),
    "Adamax": lambda groups: torch.optim.Adamax(groups, lr=0.1),
    "NAdam": lambda groups: torch.optim.NAdam(groups, lr=0.1),
    "RAdam": lambda groups: torch.optim.RAdam(groups, lr=0.1),
    "RMSProp": lambda groups: torch.optim.RMSprop(groups, lr=0.1, momentum=0.9),
}


class Run:
    """A small network with an optimizer, in channels_last."""

    def __init__(self, optimizer: str, seed: int = 0) -> None:
        torch.manual_seed(seed)
        layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
        self.model = layers.to(memory_format=torch.channels_last)
        weights = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        self.optimizer = OPTIMIZERS[optimizer]([{"params": weights, "param_group": "weight"}, {"params": others}])
        self.parameters = dict(self.model.named_parameters())
        self.names = {p: name for name, p in self.parameters.items()}

    def backward(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(2, 3, 8, 8, generator=generator).contiguous(memory_format=torch.channels_last)
        self.model(images).square().mean().backward()

    def step(self, seed: int) -> None:
        self.backward(seed)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.optimizer.param_groups[0]["lr"] *= 0.9

    def saved(self) -> tuple[dict[str, dict[str, torch.Tensor]], tuple[dict[str, object], ...]]:
        groups = {
            "model": self.model.state_dict(),
            "optimizer": named_state(self.optimizer, self.names),
            "gradients": gradients(self.model),
        }
        copies = {
            group: {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
            for group, tensors in groups.items()
        }
        return copies, groups_to_json(self.optimizer)

    def restore(self, saved: tuple[dict[str, dict[str, torch.Tensor]], tuple[dict[str, object], ...]]) -> None:
        tensors, groups = saved
        restore_model(self.model, tensors["model"], what="model")
        restore_optimizer(self.optimizer, self.parameters, tensors["optimizer"], groups)
        restore_gradients(self.parameters, tensors["gradients"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_goes_on_bit_for_bit_from_what_was_read_out(optimizer: str) -> None:
    import json

    one = Run(optimizer)
    for seed in range(3):
        one.step(seed)
    one.backward(3)  # a gradient that waits for its step
    tensors, groups = one.saved()
    groups = tuple(json.loads(json.dumps(groups)))

    other = Run(optimizer, seed=99)
    other.step(50)
    other.restore((tensors, groups))
    for run in (one, other):
        run.backward(4)
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.step(5)
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], tensor), name
    for name, tensor in named_state(one.optimizer, one.names).items():
        assert torch.equal(named_state(other.optimizer, other.names)[name], tensor), name
    assert groups_to_json(one.optimizer) == groups_to_json(other.optimizer)


def test_what_is_restored_keeps_its_memory_layout() -> None:
    one, other = Run("AdamW"), Run("AdamW", seed=1)
    one.step(0)
    one.backward(1)
    other.restore(one.saved())
    gradient = other.parameters["0.weight"].grad
    assert gradient is not None
    assert gradient.stride() == other.parameters["0.weight"].stride()
    state = other.optimizer.state[other.parameters["0.weight"]]["exp_avg"]
    assert state.stride() == other.parameters["0.weight"].stride()


def test_another_model_is_refused() -> None:
    with pytest.raises(UserError, match=r"the checkpoint's EMA is not this model: 1 tensors differ.*'0.bias'"):
        run = Run("SGD")
        tensors = {name: tensor for name, tensor in run.model.state_dict().items() if name != "0.bias"}
        restore_model(run.model, tensors, what="EMA")
    with pytest.raises(UserError, match="is not this model"):
        restore_model(run.model, {**run.model.state_dict(), "0.bias": torch.zeros(5)}, what="model")


def test_another_optimizer_is_refused() -> None:
    run = Run("SGD")
    tensors, groups = run.saved()
    with pytest.raises(UserError, match=r"has 1 parameter groups.* 2"):
        run.restore((tensors, groups[:1]))

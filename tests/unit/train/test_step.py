"""The step on a small network of our own, whose loss is normalised over the batch as a detection loss is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steadyolo.train.precision import Precision
from steadyolo.train.step import Stepper


@dataclass
class FakeBranch:
    total: Tensor
    normaliser: Tensor
    scale: float

    @property
    def mass(self) -> Tensor:
        return self.normaliser


@dataclass
class FakePart:
    branches: Mapping[str, FakeBranch]
    items: dict[str, Tensor]

    @property
    def branch_of_item(self) -> Mapping[str, str]:
        return dict.fromkeys(self.items, "one2one")


class Network(nn.Module):
    """Two heads on one trunk; the second does not teach it, as in end-to-end detectors."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.many, self.one = nn.Conv2d(3, 4, 3), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.trunk(images).tanh().mean((2, 3))
        return {"many": self.many(features), "one": self.one(features.detach())}


def criterion(preds: dict[str, Tensor], batch: dict[str, Any]) -> FakePart:
    """`scale x sum / normaliser`, with a normaliser that differs from part to part and from head to head."""
    branches, num_images = {}, len(batch["img"])
    for name, weight in (("many", batch["weight"]), ("one", batch["weight"] ** 2)):
        normaliser = weight.sum()
        total = num_images * ((preds[name] - 1.0).square().sum(1) * weight).sum() / normaliser
        branches["main" if name == "many" else "one2one"] = FakeBranch(total, normaliser, float(num_images))
    last = branches["one2one"]
    return FakePart(branches, {"loss": last.total.detach() / last.scale})


def split(num_images: int) -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    def parts(batch: dict[str, Any]) -> list[dict[str, Any]]:
        starts = range(0, len(batch["img"]), num_images)
        return [{name: value[start : start + num_images] for name, value in batch.items()} for start in starts]

    return parts


def stepper(num_images: int, *, lr: float = 0.1, momentum: float = 0.9) -> Stepper:
    torch.manual_seed(0)
    model = Network().double()
    return Stepper(
        model,
        torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum),
        criterion=criterion,
        split=split(num_images),
        precision=Precision("fp32", channels_last=False),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        branch_of=lambda name: "one2one" if name.startswith("one.") else "main",
    )


def batch(seed: int, num_images: int = 7) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "img": torch.randn(num_images, 3, 5, 5, generator=generator, dtype=torch.float64),
        "weight": torch.rand(num_images, generator=generator, dtype=torch.float64) + 0.1,
    }


def gradients(made: Stepper) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("num_images", [1, 2, 3, 4, 6])
def test_parts_give_the_loss_of_the_whole(num_images: int) -> None:
    whole, parts = stepper(99).accumulate(batch(1)), stepper(num_images).accumulate(batch(1))
    assert float(parts.loss) == pytest.approx(float(whole.loss), rel=1e-12)
    assert float(parts.items["loss"]) == pytest.approx(float(whole.items["loss"]), rel=1e-12)
    assert bool(parts.finite)
    assert bool(whole.finite)


@pytest.mark.parametrize("num_images", [1, 2, 3, 4, 6])
def test_parts_give_the_gradient_of_the_whole(num_images: int) -> None:
    whole, parts = stepper(99), stepper(num_images)
    for seed in (1, 2):  # the second one is added to the first
        whole.accumulate(batch(seed))
        parts.accumulate(batch(seed))
    for name, gradient in gradients(whole).items():
        assert torch.allclose(gradients(parts)[name], gradient, rtol=1e-9, atol=1e-14), name


def test_an_update_applies_what_was_accumulated_and_clears_it() -> None:
    made = stepper(99)
    before = [p.detach().clone() for p in made.model.parameters()]
    made.accumulate(batch(1))
    assert bool(made.update())
    assert all(not torch.equal(p, was) for p, was in zip(made.model.parameters(), before, strict=True))
    assert gradients(made) == {}


def test_a_gradient_that_is_too_long_is_clipped() -> None:
    made = stepper(99, lr=1.0, momentum=0.0)
    before = [p.detach().clone() for p in made.model.parameters()]
    made.accumulate(batch(1))
    for p in made.model.parameters():
        assert p.grad is not None
        p.grad.mul_(1e6)
    made.update()
    moved = torch.stack(
        [(p.detach() - was).norm() for p, was in zip(made.model.parameters(), before, strict=True)]
    ).norm()
    assert float(moved) == pytest.approx(10.0, rel=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("num_images", [99, 2])
def test_a_loss_that_is_not_finite_is_seen_in_its_batch(bad: float, num_images: int) -> None:
    made = stepper(num_images)
    spoilt = batch(1)
    spoilt["img"][3, 0, 0, 0] = bad
    if not math.isnan(bad):  # tanh would hide an infinity
        spoilt["weight"][3] = bad
    assert not bool(made.accumulate(spoilt).finite)


@pytest.mark.parametrize("num_images", [99, 2])
def test_a_gradient_that_is_not_finite_is_seen_in_its_batch(num_images: int) -> None:
    made = stepper(num_images)
    assert bool(made.accumulate(batch(1)).finite)
    made.model.trunk.weight.register_hook(lambda gradient: gradient * math.nan)  # type: ignore[union-attr,operator]
    outcome = made.accumulate(batch(2))
    assert bool(torch.isfinite(outcome.loss))
    assert not bool(outcome.finite)


def test_a_gradient_that_is_not_finite_is_not_applied() -> None:
    made = stepper(99)
    made.accumulate(batch(1))
    made.update()
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    momentum = [state["momentum_buffer"].clone() for state in made.optimizer.state.values()]
    made.accumulate(batch(1))
    made.model.one.bias.grad[0] = math.nan  # type: ignore[union-attr,index,operator]
    assert not bool(made.update())
    assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())
    after = [state["momentum_buffer"] for state in made.optimizer.state.values()]
    assert all(torch.equal(one, other) for one, other in zip(after, momentum, strict=True))
    assert gradients(made) == {}


def test_a_fused_optimizer_does_not_apply_it_either() -> None:
    made = stepper(99)
    made.model.float()
    made.optimizer = torch.optim.AdamW(made.model.parameters(), lr=0.1, fused=True)
    given = {name: value.float() for name, value in batch(1).items()}
    made.accumulate(given)
    assert bool(made.update())
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    made.accumulate(given)
    made.model.one.bias.grad[0] = math.nan  # type: ignore[union-attr,index,operator]
    assert not bool(made.update())
    assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())
    made.accumulate(given)
    assert bool(made.update())
    assert any(not torch.equal(value, before[name]) for name, value in made.model.state_dict().items())

"""The step on a small network of our own, whose loss is normalised over the batch as a detection loss is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steadyolo.train.out_of_memory import OutOfMemory
from steadyolo.train.precision import Precision
from steadyolo.train.ranks import Alone
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


class Twins(Alone):
    """Two processes that have the same images: what one has, the other has too."""

    count = 2

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        torch._foreach_mul_(list(tensors), 2)


def stepper(
    num_images: int, *, lr: float = 0.1, momentum: float = 0.9, ranks: Alone | None = None, normed: bool = False
) -> Stepper:
    torch.manual_seed(0)
    model = Network().double()
    if normed:
        model.trunk = nn.Sequential(model.trunk, nn.BatchNorm2d(4).double())  # type: ignore[assignment]
    return Stepper(
        model,
        torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum),
        criterion=criterion,
        split=split(num_images),
        precision=Precision("fp32", channels_last=False),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        branch_of=lambda name: "one2one" if name.startswith("one.") else "main",
        ranks=ranks,
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


def twice(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([value, value]) for name, value in given.items()}


@pytest.mark.parametrize("num_images", [3, 99])
def test_shares_give_the_gradient_of_the_whole(num_images: int) -> None:
    whole, share = stepper(99), stepper(num_images, ranks=Twins())
    for seed in (1, 2):
        expected, outcome = whole.accumulate(twice(batch(seed))), share.accumulate(batch(seed))
        assert float(outcome.loss) == pytest.approx(float(expected.loss), rel=1e-12)
        assert float(outcome.items["loss"]) == pytest.approx(float(expected.items["loss"]), rel=1e-12)
    for name, gradient in gradients(whole).items():
        assert torch.allclose(gradients(share)[name], gradient, rtol=1e-9, atol=1e-14), name


def test_statistics_are_the_mean_over_the_ranks() -> None:
    """Twins see the same images, so that the mean of both is what one of them has."""
    alone, share = stepper(99, normed=True), stepper(99, normed=True, ranks=Twins())
    alone.accumulate(batch(1))
    share.accumulate(batch(1))
    for name, value in alone.model.named_buffers():
        assert torch.equal(dict(share.model.named_buffers())[name], value), name


def test_images_without_weight_count_for_nothing() -> None:
    made = stepper(99, ranks=Twins())
    made.accumulate(batch(1))
    before = gradients(made)
    outcome = made.accumulate(batch(2), weight=0.0)
    assert float(outcome.loss) == float(outcome.items["loss"]) == 0.0
    assert all(torch.equal(gradient, before[name]) for name, gradient in gradients(made).items())


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


# --- batches that are taken back ---


class Normalised(nn.Module):
    """A network with running statistics and dropout, whose middle asks for memory that is not there."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.norm, self.drop = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.2)
        self.many, self.one = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.drop(self.norm(self.trunk(images))).tanh().mean((2, 3))
        return {"many": self.many(features), "one": self.one(features.detach())}


def fail(*_: object, **__: object) -> None:
    torch.empty(2**60, dtype=torch.uint8)


@dataclass
class Counted:
    """Calls `act` at the `nth` call, counted from 1."""

    nth: int
    act: Callable[..., None] = fail

    def __call__(self, *_: object) -> None:
        self.nth -= 1
        if self.nth == 0:
            self.act()


FAILING: dict[str, Callable[[Stepper, int], object]] = {
    "forward": lambda made, nth: made.model.many.register_forward_hook(Counted(nth)),  # type: ignore[union-attr,operator]
    "backward": lambda made, nth: made.model.trunk.weight.register_hook(Counted(nth)),  # type: ignore[union-attr,operator]
}


def normalised(num_images: int, optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW) -> Stepper:
    torch.manual_seed(0)
    model = Normalised()
    return Stepper(
        model,
        optimizer(model.parameters(), lr=0.1),
        criterion=criterion,
        split=split(num_images),
        precision=Precision("fp32", channels_last=False),
        scaler=torch.amp.GradScaler("cpu", init_scale=2.0**8),
        branch_of=lambda name: "one2one" if name.startswith("one.") else "main",
    )


def single(seed: int) -> dict[str, Tensor]:
    return {name: value.float() for name, value in batch(seed).items()}


def everything(made: Stepper) -> dict[str, Tensor]:
    """All tensors that training changes, as they are now."""
    state = {f"model/{name}": value for name, value in made.model.state_dict().items()}
    state |= {f"gradient/{name}": value for name, value in gradients(made).items()}
    for number, (_, held) in enumerate(made.optimizer.state.items()):
        state |= {f"optimizer/{number}/{name}": value for name, value in held.items() if isinstance(value, Tensor)}
    state["scale"] = torch.tensor(made._scaler.get_scale())
    return {name: value.clone() for name, value in state.items()}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    return [
        name
        for name in {**one, **other}
        if name not in one or name not in other or not torch.equal(one[name], other[name])
    ]


def learn(made: Stepper, seed: int, *, update: bool = True) -> None:
    torch.manual_seed(seed)
    made.accumulate(single(seed))
    if update:
        made.update()
    made.settle()


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("num_before", [0, 1], ids=["first of its step", "second of its step"])
@pytest.mark.parametrize("where", FAILING)
def test_a_batch_that_failed_leaves_no_trace(where: str, num_before: int, nth: int) -> None:
    made, undisturbed = normalised(3), normalised(3)
    for one in (made, undisturbed):
        learn(one, 1)
        for seed in range(num_before):
            learn(one, 10 + seed, update=False)
    before = everything(made)
    hook = FAILING[where](made, nth)
    with pytest.raises(OutOfMemory) as caught:
        made.accumulate(single(5))
    hook.remove()  # type: ignore[attr-defined]
    assert caught.value.moment == where
    assert differing(everything(made), before), "it failed before it changed anything"
    made.roll_back()
    assert differing(everything(made), before) == []
    for one in (made, undisturbed):
        learn(one, 5)
    assert differing(everything(made), everything(undisturbed)) == []


def test_a_failure_before_the_optimizers_step_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    made, undisturbed = normalised(3), normalised(3)
    for one in (made, undisturbed):
        learn(one, 1)
        learn(one, 2, update=False)
    before = everything(made)
    made.accumulate(single(3))
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="can't allocate memory"):
        patched.setattr(torch.nn.utils, "clip_grad_norm_", fail)
        made.update()
    assert not made.is_applied
    made.roll_back()
    assert differing(everything(made), before) == []
    for one in (made, undisturbed):
        learn(one, 3)
    assert differing(everything(made), everything(undisturbed)) == []


def test_a_step_that_was_begun_is_known() -> None:
    made = normalised(9)
    made.accumulate(single(1))
    made.optimizer.register_step_pre_hook(fail)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        made.update()
    assert made.is_applied
    assert made.moment == "update"


@pytest.mark.parametrize("agreed", [True, False])
def test_what_one_process_cannot_do_none_does(agreed: bool) -> None:
    class Both(Alone):
        """The other of two processes has memory or, unless `agreed`, has not."""

        def any(self, *flags: bool) -> tuple[bool, ...]:
            asked.append(not flags[0])
            return (flags[0] or not agreed,)

    made, asked = normalised(9), list[bool]()
    made._ranks = Both()
    before = everything(made)
    if agreed:
        made.accumulate(single(1))
    else:
        with pytest.raises(OutOfMemory, match="another process"):
            made.accumulate(single(1))
        made.roll_back()
        assert differing(everything(made), before) == []
    hook = FAILING["forward"](made, 1)
    with pytest.raises(OutOfMemory, match="can't allocate memory"):
        made.accumulate(single(1))
    hook.remove()  # type: ignore[attr-defined]
    assert asked == [True, False]


def test_errors_that_have_nothing_to_do_with_memory_pass() -> None:
    made = normalised(9)
    with pytest.raises(KeyError):
        made.accumulate({"img": single(1)["img"]})


def test_the_restore_is_needed() -> None:
    """Without it the statistics have seen the failed batch, and the step has the gradient of half of it."""
    made, undisturbed = normalised(3), normalised(3)
    for one in (made, undisturbed):
        learn(one, 1)
    hook = FAILING["backward"](made, 2)
    with pytest.raises(OutOfMemory):
        made.accumulate(single(5))
    hook.remove()  # type: ignore[attr-defined]
    for one in (made, undisturbed):
        learn(one, 5)
    assert any("running_mean" in name for name in differing(everything(made), everything(undisturbed)))

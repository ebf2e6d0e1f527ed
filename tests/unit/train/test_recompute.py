"""Layers that are computed again teach what layers that are kept teach, bit for bit, for less memory."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn
from ultralytics.nn.tasks import ClassificationModel, DetectionModel, OBBModel, PoseModel, SegmentationModel

from steadyolo.testing.tensor_bytes import peak_bytes
from steadyolo.train import recompute
from steadyolo.train.recompute import Recompute

MODELS = {
    "yolov8n": DetectionModel,
    "yolo11n": DetectionModel,
    "yolo12n": DetectionModel,
    "yolo26n": DetectionModel,
    "yolov8n-seg": SegmentationModel,
    "yolo11n-pose": PoseModel,
    "yolo26n-obb": OBBModel,
    "yolov8n-cls": ClassificationModel,
}
NUM_STEPS = 2


@pytest.fixture(scope="module")
def made() -> Callable[[str], nn.Module]:
    """Models by name, each built once; every call gives a fresh copy."""
    kept: dict[str, nn.Module] = {}

    def make(name: str) -> nn.Module:
        if name not in kept:
            torch.manual_seed(0)
            kept[name] = MODELS[name](f"{name}.yaml", verbose=False).train()
        return copy.deepcopy(kept[name])

    return make


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


def images(side_px: int = 64, num_images: int = 2) -> torch.Tensor:
    return torch.rand(num_images, 3, side_px, side_px, generator=torch.Generator().manual_seed(1))


def train(
    model: nn.Module, *, dtype: torch.dtype | None = None, channels_last: bool = False, side_px: int = 64
) -> dict[str, torch.Tensor]:
    """Everything that a few steps leave: gradients, weights, buffers, the last outputs, and the random stream."""
    torch.manual_seed(2)
    x = images(side_px)
    if channels_last:
        x, model = x.to(memory_format=torch.channels_last), model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for step in range(NUM_STEPS):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype) if dtype else contextlib.nullcontext():
            outputs = [each for each in tensors_in(model(x)) if each.is_floating_point()]
        torch.stack([each.float().square().mean() for each in outputs]).sum().backward()
        if step + 1 < NUM_STEPS:
            optimizer.step()
    left = {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    left |= {f"output {i}": each.detach() for i, each in enumerate(outputs)}
    return left | {name: each.clone() for name, each in model.state_dict().items()} | {"random": torch.rand(3)}


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def recomputing(model: nn.Module, num_layers: int | None = None) -> nn.Module:
    switch = Recompute(model)
    switch.set(switch.num_layers_max if num_layers is None else num_layers)
    return model


@pytest.mark.parametrize(
    ("dtype", "channels_last", "num_layers"),
    [(None, False, None), (torch.bfloat16, False, 4), (torch.bfloat16, True, None), (torch.bfloat16, True, 9)],
    ids=["fp32", "bf16", "bf16-channels-last", "bf16-channels-last-some"],
)
@pytest.mark.parametrize("name", MODELS)
def test_what_is_learned_is_the_same(
    name: str, dtype: torch.dtype | None, channels_last: bool, num_layers: int | None, made: Callable[[str], nn.Module]
) -> None:
    plain = train(made(name), dtype=dtype, channels_last=channels_last)
    ours = train(recomputing(made(name), num_layers), dtype=dtype, channels_last=channels_last)
    assert any(value.any() for key, value in plain.items() if key.startswith("gradient")), "nothing was learned"
    assert any(key.endswith("num_batches_tracked") and value == NUM_STEPS for key, value in plain.items())
    assert differing(plain, ours) == []


def test_any_number_of_layers_and_changes_between_steps(made: Callable[[str], nn.Module]) -> None:
    plain, ours = made("yolo11n"), made("yolo11n")
    switch = Recompute(ours)
    for num_layers in (1, 2, 5, 0, 7, 12, switch.num_layers_max, 0, 3):
        switch.set(num_layers)
        assert switch.num_layers == num_layers
        assert differing(train(plain), train(ours)) == [], num_layers


def test_leaving_buffers_alone_is_needed(made: Callable[[str], nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recompute, "_buffers_left_alone", lambda _: contextlib.nullcontext())
    wrong = differing(train(made("yolov8n")), train(recomputing(made("yolov8n"), 4)))
    assert "model.0.bn.num_batches_tracked" in wrong
    assert "model.0.bn.running_mean" in wrong


class Dropped(nn.Module):
    """A layer with dropout behind it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.drop = layer, nn.Dropout(0.3)
        self.i, self.f, self.type = layer.i, layer.f, "Dropped"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.layer(x))


@pytest.fixture
def dropping(made: Callable[[str], nn.Module]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = made("yolov8n")
        for at in (1, 2, 6):
            model.model[at] = Dropped(model.model[at])
        return model

    return make


def test_random_streams_are_kept(dropping: Callable[[], nn.Module]) -> None:
    assert differing(train(dropping()), train(recomputing(dropping()))) == []


def test_keeping_random_streams_is_needed(dropping: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recompute, "checkpoint", partial(recompute.checkpoint, preserve_rng_state=False))
    assert differing(train(dropping()), train(recomputing(dropping())))


def test_frozen_and_shared_parameters(made: Callable[[str], nn.Module]) -> None:
    def make() -> nn.Module:
        model = made("yolov8n")
        for at in (0, 1, 2, 5):
            model.model[at].requires_grad_(False)
        model.model[4].m[1].cv1 = model.model[4].m[0].cv1
        model.model[8].m[0].cv2.conv.weight = model.model[8].m[0].cv1.conv.weight
        return model

    assert differing(train(make()), train(recomputing(make()))) == []


def test_frozen_statistics(made: Callable[[str], nn.Module]) -> None:
    def make() -> nn.Module:
        model = made("yolov8n")
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return model

    assert differing(train(make()), train(recomputing(make()))) == []


def test_inside_a_distributed_model(made: Callable[[str], nn.Module], tmp_path: Path) -> None:
    plain, inner = made("yolov8n"), recomputing(made("yolov8n"))
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(inner)
        ours = train(wrapped)
    finally:
        distributed.destroy_process_group()
    assert differing(train(plain), {name.replace("module.", "", 1): value for name, value in ours.items()}) == []


# -- memory and time -----------------------------------------------------------------------------------------------


def step_bytes(model: nn.Module, x: torch.Tensor) -> int:
    """The most tensor bytes that a forward and backward pass holds."""
    model.zero_grad()
    gc.collect()
    return peak_bytes(lambda: torch.stack([each.square().mean() for each in tensors_in(model(x))]).sum().backward())


@pytest.mark.parametrize("name", ["yolov8n", "yolo26n"])
def test_memory_falls(name: str, made: Callable[[str], nn.Module]) -> None:
    model, x = made(name), images(256)
    plain = step_bytes(model, x)
    switch = Recompute(model)
    shares = {}
    for num_layers in (3, 9, switch.num_layers_max):
        switch.set(num_layers)
        shares[num_layers] = step_bytes(model, x) / plain
    assert shares[3] < 0.8, shares
    assert shares[9] < 0.7, shares
    assert shares[switch.num_layers_max] < 0.5, shares


def test_each_layer_is_computed_once_more_and_the_head_is_not(made: Callable[[str], nn.Module]) -> None:
    model = recomputing(made("yolov8n"), 6)
    counts = [0] * len(model.model)

    def count(layer: Any, _: Any) -> None:
        counts[layer.i] += 1

    for layer in model.model:
        layer.register_forward_pre_hook(count)
    torch.stack([each.square().mean() for each in tensors_in(model(images()))]).sum().backward()
    assert counts == [2] * 6 + [1] * (len(counts) - 6)


def test_nothing_is_recomputed_without_gradients(made: Callable[[str], nn.Module]) -> None:
    plain, ours = made("yolov8n").eval(), recomputing(made("yolov8n")).eval()
    with torch.no_grad():
        theirs = list(tensors_in(plain(images())))
        assert all(torch.equal(*both) for both in zip(theirs, tensors_in(ours(images())), strict=True))


# -- what others see -----------------------------------------------------------------------------------------------


def test_copies_pickles_and_names_are_the_plain_models(made: Callable[[str], nn.Module]) -> None:
    model = made("yolov8n")
    names, plain, switch = list(model.state_dict()), pickle.dumps(model), Recompute(model)
    switch.set(5)
    assert type(model) is not DetectionModel, "it is not switched on"
    assert model.__class__ is DetectionModel
    assert type(copy.deepcopy(model)) is DetectionModel
    assert type(pickle.loads(pickle.dumps(model))) is DetectionModel
    assert pickle.dumps(model) == plain
    assert list(model.state_dict()) == names
    file = io.BytesIO()
    torch.save(model, file)
    assert b"steadyolo" not in file.getvalue()
    switch.set(0)
    assert type(model) is DetectionModel


def test_a_fault_while_recomputing_leaves_the_model_as_it_was(made: Callable[[str], nn.Module]) -> None:
    model = recomputing(made("yolov8n"), 6)
    before = dict(model.named_buffers())
    loss = torch.stack([each.square().mean() for each in tensors_in(model(images()))]).sum()
    values = {name: buffer.clone() for name, buffer in before.items()}

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    hook = model.model[2].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        loss.backward()
    hook.remove()
    after = dict(model.named_buffers())
    assert all(after[name] is buffer for name, buffer in before.items())
    assert all(torch.equal(after[name], value) for name, value in values.items())


@pytest.mark.parametrize("num_layers", [-1, 23])
def test_what_cannot_be_recomputed_is_refused(num_layers: int, made: Callable[[str], nn.Module]) -> None:
    switch = Recompute(made("yolov8n"))
    assert switch.num_layers_max == 22
    with pytest.raises(ValueError, match="0 to 22"):
        switch.set(num_layers)


def test_a_model_that_runs_its_layers_in_a_way_of_its_own_keeps_them(made: Callable[[str], nn.Module]) -> None:
    class Own(DetectionModel):  # as RT-DETR and YOLO-World do
        def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
            return super().predict(x, *args, **kwargs)

    model = made("yolov8n")
    model.__class__ = Own
    assert Recompute(model).num_layers_max == 0

"""Small served models for tests: Ultralytics' own families, an eighth as wide, exported once a session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steadyolo.serve.served_model import ServedModel

END_TO_END = frozenset({"yolov10", "yolo26"})  # exported by the head that needs no suppression
OWN_WIDTH = {"yolov10": Path("yolov10n.yaml"), "yolo12": Path("yolo12n.yaml")}  # cannot be as narrow as the others
SIDE_PX = 160
CLASSES = ("open", "short", "spur")


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory, models: Callable[..., Path]) -> Callable[..., Path]:
    """A `.pt` of a task and family, with weights from a fixed seed that find something in any picture."""
    folder = tmp_path_factory.mktemp("weights")

    @cache
    def made(task: str, family: str) -> Path:
        yaml = OWN_WIDTH.get(family) or models(task, family)
        return write_weights(folder / f"{family}-{task}.pt", yaml, task)

    return lambda task, family="yolov8": made(task, family)  # a default is one key of the cache with what it stands for


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, weights: Callable[..., Path]) -> Callable[..., ServedModel]:
    """A served model of a task and family. Its folder is shared: a test that changes it makes a copy."""
    folder = tmp_path_factory.mktemp("served")

    @cache
    def made(task: str, family: str) -> ServedModel:
        path = weights(task, family)
        return export_in_this_process(path, folder / f"{path.stem}.served", is_end_to_end=family in END_TO_END)

    return lambda task, family="yolov8": made(task, family)


def export_in_this_process(path: Path, folder: Path, *, is_end_to_end: bool = False) -> ServedModel:
    """What `export_model` does, without the seconds that a process takes to start."""
    from steadyolo.adapters.ultralytics.export_process import ExportRequest
    from steadyolo.adapters.ultralytics.exporting import export_here
    from steadyolo.serve.keeping import keep_served, staging
    from steadyolo.serve.served_model import Source, digest_of

    with staging(folder) as staged:
        request = ExportRequest(weights=path, staged=staged, is_end_to_end=is_end_to_end)
        made = export_here(request, lambda _: None)
        source = Source(name=path.name, sha256=digest_of(path))
        return keep_served(staged, folder, {**made, "name": path.stem, "source": source})


def write_weights(path: Path, yaml: Path, task: str) -> Path:
    """Weights of the model in `yaml`, which was never trained. It is made to answer like one that was: features that
    vary over a picture, and boxes of which some are surely something.
    """
    import torch
    from torch import nn

    from steadyolo.adapters.ultralytics.stand_ins import build_model

    torch.manual_seed(5)
    net: Any = build_model(str(yaml), task, len(CLASSES))
    images = torch.from_numpy(drawn(8))
    with torch.no_grad():
        norms = [one for one in net.modules() if isinstance(one, nn.BatchNorm2d)]
        for one in norms:
            one.momentum = None  # the mean of what it sees
        net.train()(images)
        for one in norms:
            one.momentum = 0.03
            one.running_var.clamp_(min=0.1 * float(one.running_var.mean()))  # what hardly varied must not explode
        for layer in last_layers(net, task):
            spread(net.eval(), layer, images, task)
    for parameter in net.parameters():
        parameter.requires_grad = False
    net.args = {"task": task, "imgsz": SIDE_PX, "model": str(yaml)}
    net.names = dict(enumerate(CLASSES))
    torch.save({"model": net, "ema": None, "train_args": net.args, "epoch": -1}, path)
    return path


def last_layers(net: Any, task: str) -> list[Any]:
    """What the scores come out of, before they are squashed."""
    head = net.model[-1]
    if task == "classify":
        return [head.linear]
    branches = [getattr(head, name, None) for name in ("cv3", "one2one_cv3")]
    return [level[-1] for branch in branches if branch is not None for level in branch]


def spread(net: Any, layer: Any, images: Any, task: str) -> None:
    """Scale a layer so that what it says of `images` is sure of some places and not of most."""
    seen: list[Any] = []
    hook = layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    net(images)
    hook.remove()
    (found,) = seen
    places = [axis for axis in range(found.ndim) if axis != 1]
    scale = 2.0 / found.std(places).clamp_min(1e-6)
    shift = (0.0 if task == "classify" else -4.5) - scale * (found.mean(places) - layer.bias)
    layer.weight *= scale.view(-1, *[1] * (layer.weight.ndim - 1))
    layer.bias.copy_(shift)


def drawn(num_images: int) -> np.ndarray:
    """Pictures of boards, as a graph takes them."""
    from steadyolo.data.boards.defect import DEFECTS
    from steadyolo.data.boards.picture import take_picture

    taken = [take_picture((7, i), board_px=(SIDE_PX, SIDE_PX), kinds=DEFECTS).image for i in range(num_images)]
    return np.ascontiguousarray(np.stack(taken)[..., ::-1].transpose(0, 3, 1, 2), np.float32) / np.float32(255)

"""`Recompute`: the first layers of a network are computed again in the backward pass instead of being kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

_IMAGES = -1  # where a first layer reads from

# Layers that are computed again together. What is between them is not kept, but all of it is there when they are
# computed again: of 1 to 4, and of runs that end where the picture shrinks, two saved most or nearly most everywhere.
_RUN = 2

_CLASS: Any = vars(object)["__class__"]  # an object's real class, whatever it says of itself


class Recompute:
    """Switches recomputation on and off for `model`: a network of layers in `model.model`, each of which says in `.i`
    where it stands and in `.f` whose outputs it reads. The last layer, the head, is always kept.

    Gradients, running statistics and random streams are bit for bit those of the plain network. The autograd graph is
    the plain one too, so parameters may be shared or frozen, and the model may be wrapped (DistributedDataParallel).
    While it is on, the model has a class of its own, which copies and pickles as the class that it had.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._plain: Any = type(model)
        self.num_layers = 0

    @property
    def num_layers_max(self) -> int:
        """Layers that can be recomputed; 0 where the model does not run its layers one after another."""
        runs_layers, is_asked = (_definer(self._plain, name) for name in ("_predict_once", "predict"))
        return len(self._layers) - 1 if runs_layers is not None and runs_layers is is_asked else 0

    @property
    def _layers(self) -> Any:
        return self._model.model

    def set(self, num_layers: int) -> None:
        """From the next forward pass on, recompute the first `num_layers` layers; 0 switches it off."""
        if not 0 <= num_layers <= self.num_layers_max:
            raise ValueError(f"{num_layers} layers are to be recomputed, of 0 to {self.num_layers_max}")
        self.num_layers = num_layers
        _CLASS.__set__(self._model, self._recomputing() if num_layers else self._plain)

    def _recomputing(self) -> type:
        """A class for the model that differs from its own in one method, and is not seen in copies and pickles."""
        plain, run_layers = self._plain, self._run_layers

        def predict_once(model: nn.Module, x: Any, profile: bool = False, embed: Any = None) -> Any:
            if profile or embed or not torch.is_grad_enabled():
                return plain._predict_once(model, x, profile, embed)
            return run_layers(x)

        def reduce_ex(model: nn.Module, protocol: Any) -> Any:
            make, (_, *arguments), *state = plain.__reduce_ex__(model, protocol)
            return make, (plain, *arguments), *state

        methods = {"_predict_once": predict_once, "__reduce_ex__": reduce_ex, "__class__": property(lambda _: plain)}
        return type(plain.__name__, (plain,), {**methods, "__module__": plain.__module__, "__doc__": plain.__doc__})

    def _run_layers(self, images: Any) -> Any:
        layers = list(self._layers)
        reads = [_reads(layer) for layer in layers]
        last_read = {source: at for at, sources in enumerate(reads) for source in sources}
        last_read[len(layers) - 1] = len(layers)
        outputs = {_IMAGES: images}
        for run, again in _runs(layers, self.num_layers):
            given = sorted({source for at in run for source in reads[at]} - set(run))
            kept = [at for at in run if last_read.get(at, at) >= run.stop]
            compute = _computes([layers[at] for at in run], given, kept)
            inputs = [outputs[at] for at in given]
            found = _checkpointed(compute, inputs, layers[run.start : run.stop]) if again else compute(*inputs)
            outputs.update(zip(kept, found, strict=True))
            outputs = {at: output for at, output in outputs.items() if last_read[at] >= run.stop}
        return outputs[len(layers) - 1]


def _runs(layers: Sequence[Any], num_recomputed: int) -> Iterator[tuple[range, bool]]:
    """Ranges of layers that are computed together, and whether they are computed again."""
    for start in range(0, num_recomputed, _RUN):
        yield range(start, min(start + _RUN, num_recomputed)), True
    for at in range(num_recomputed, len(layers)):
        yield range(at, at + 1), False


def _reads(layer: Any) -> list[int]:
    """Positions of the layers whose outputs `layer` reads."""
    sources = [layer.f] if isinstance(layer.f, int) else layer.f
    return [source if source >= 0 else layer.i + source for source in sources]


def _computes(layers: Sequence[Any], given: Sequence[int], kept: Sequence[int]) -> Callable[..., tuple[Any, ...]]:
    """The function from the outputs of the layers `given` to those of `kept`, through `layers`."""

    def compute(*inputs: Any) -> tuple[Any, ...]:
        outputs = dict(zip(given, inputs, strict=True))
        for layer in layers:
            read = [outputs[source] for source in _reads(layer)]
            outputs[layer.i] = layer(read[0] if isinstance(layer.f, int) else read)
        return tuple(outputs[at] for at in kept)

    return compute


def _checkpointed(compute: Callable[..., Any], inputs: Sequence[Any], layers: Sequence[nn.Module]) -> Any:
    """`compute(*inputs)`, done again in the backward pass with the same random draws and the same autocast."""
    return checkpoint(
        compute,
        *inputs,
        use_reentrant=False,  # keeps the plain autograd graph, and with it the order in which gradients are summed
        context_fn=lambda: (contextlib.nullcontext(), _buffers_left_alone(layers)),
    )


@contextlib.contextmanager
def _buffers_left_alone(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Within, the layers work on copies of their buffers: what BatchNorm counts there, the forward pass has counted."""
    owners = [module for layer in layers for module in layer.modules()]
    buffers = [(owner, name, buffer) for owner in owners for name, buffer in owner.named_buffers(recurse=False)]
    for owner, name, buffer in buffers:
        setattr(owner, name, buffer.clone())
    try:
        yield
    finally:
        for owner, name, buffer in buffers:
            setattr(owner, name, buffer)


def _definer(kind: type, name: str) -> type | None:
    return next((base for base in kind.__mro__ if name in vars(base)), None)

"""A session: a served model compiled on one device. Each runtime in `adapters/runtimes/` makes its own kind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from steadyolo.serve.served_model import ServedModel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# As texts: the process that listens knows these words, and does not wait for NumPy.
Images: TypeAlias = "NDArray[np.float32]"  # (batch, 3, height, width), RGB, 0 to 1
Output: TypeAlias = "NDArray[np.float32]"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """How a session is made. What is None the runtime chooses."""

    runtime: str = "auto"  # openvino, onnxruntime, tensorrt
    device: str = "cpu"  # cpu, cuda:0
    precision: str | None = None  # fp32, bf16, fp16
    num_threads: int | None = None
    cache: Path | None = None  # compiled graphs are kept here, by the model's version


class Session(Protocol):
    """Used by one thread at a time."""

    @property
    def label(self) -> str:
        """Runtime, device and precision, such as `openvino cpu bf16`, with the runtime's name first."""

    def run(self, images: Images) -> list[Output]:
        """The graph's outputs, in its order. The arrays are the caller's to keep.

        A shape that was not seen before may take long: warm up each that will be asked for.
        Raises: DeviceFault where the device cannot go on; UserError for a shape that the graph does not take.
        """

    def close(self) -> None:
        """Give memory back. Twice is not an error."""


@runtime_checkable
class CompilesShapes(Protocol):
    """A session that can be made ready for a shape without running it."""

    def compile(self, shape: tuple[int, ...]) -> None:
        """Ready when it returns; at once where it was. Raises: DeviceFault."""


class OpenSession(Protocol):
    """Makes sessions: `adapters.runtimes.opening.open_session`, handed in by `cli`."""

    def __call__(self, model: ServedModel, settings: SessionSettings) -> Session:
        """Raises: UserError for a runtime, device or precision that is not here."""

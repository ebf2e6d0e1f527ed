"""`steadyolo.Detector`: a model by its name, and the runtimes that are here."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from steadyolo.adapters.runtimes.choosing import Choice, choose
from steadyolo.adapters.runtimes.opening import open_session
from steadyolo.cli.models import find_model
from steadyolo.errors import SteadyError
from steadyolo.serve import detector
from steadyolo.serve.served_model import ServedModel
from steadyolo.serve.session import Session, SessionSettings
from steadyolo.serve.verifying import Verifying


class Detector(detector.Detector):
    """`Detector("m.pt")(picture)`: what a served model finds on pictures, warm from the first call of a process on."""

    def __init__(
        self,
        model: str | Path,
        *,
        runtime: str = "auto",
        device: str = "cpu",
        precision: str | None = None,
        num_threads: int | None = None,
        cache: str | Path | None = None,
        max_pixels: int | None = None,
    ) -> None:
        """A served folder, or a `.pt`, run folder or store URL that has one; `steadyolo export` makes it.

        `runtime` is auto, openvino, onnxruntime, tensorrt, or torch: the weights themselves, as the reference, where
        they are beside the served model. `precision` is fp32, bf16 or fp16, None for the device's own.
        Raises: UserError for what is not here; DataLoss for a served model that is not what was exported.
        """
        served = find_model(model, verify=False)
        verifying = Verifying(served)
        self.settings = SessionSettings(
            runtime=runtime,
            device=device,
            precision=precision,
            num_threads=num_threads,
            cache=Path(cache) if cache is not None else None,
        )
        try:
            session = _open_any(served, self.settings)
        except SteadyError:
            verifying.finish()  # a changed file is told as what it is
            raise
        super().__init__(served, session, max_pixels=max_pixels)
        verifying.finish()

    @cached_property
    def choice(self) -> Choice:
        """What `auto` measured on this machine, and took."""
        return choose(self.model, self.settings, open_session)


def _open_any(model: ServedModel, settings: SessionSettings) -> Session:
    """As `open_session`, and the reference, which no server opens."""
    if settings.runtime != "torch":
        return open_session(model, settings)
    from steadyolo.adapters.ultralytics.reference import ReferenceSession

    return ReferenceSession(model, settings)

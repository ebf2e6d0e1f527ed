"""The source model itself as a session: what every runtime's answers are measured by. For `Detector` and `detect`.

Not for serving: it needs torch, Ultralytics and the weights file, and takes seconds to start.
"""

from __future__ import annotations

from pathlib import Path

from steadyolo.adapters.runtimes.inputs import check_images, closed
from steadyolo.adapters.ultralytics.export_process import ExportRequest
from steadyolo.errors import UserError
from steadyolo.serve.served_model import ServedModel, digest_of
from steadyolo.serve.session import Images, Output, SessionSettings

RUNTIME = "torch"


class ReferenceSession:
    """A `Session` that computes as the export compared with: in fp32, on the processor, from the weights file."""

    def __init__(self, model: ServedModel, settings: SessionSettings) -> None:
        if settings.device != "cpu" or settings.precision not in (None, "fp32"):
            raise UserError(
                f"the reference computes in fp32 on the processor, not {settings.precision or 'fp32'} on "
                f"{settings.device}",
                remedy=f"leave device and precision out, or use another runtime than {RUNTIME}",
            )
        weights = weights_of(model)
        import torch

        from steadyolo.adapters.ultralytics import source_model
        from steadyolo.adapters.ultralytics.weights import check_weights

        check_weights(weights)
        request = ExportRequest(weights=weights, shape_px=model.shape_px, is_end_to_end=model.is_end_to_end)
        self._source: source_model.SourceModel | None = source_model.load(request)
        self._model = model
        if settings.num_threads is not None:
            torch.set_num_threads(settings.num_threads)

    @property
    def label(self) -> str:
        """See `Session`."""
        return f"{RUNTIME} cpu fp32"

    def run(self, images: Images) -> list[Output]:
        """See `Session`."""
        check_images(self._model, images)
        if self._source is None:
            raise closed(self._model)
        return self._source.run(images)

    def close(self) -> None:
        """See `Session`."""
        self._source = None


def weights_of(model: ServedModel) -> Path:
    """The weights that `model` was exported from, beside it. Raises: UserError where they are not there any more."""
    folder = model.folder.absolute()
    places = dict.fromkeys((folder.with_suffix(".pt"), folder.with_name(Path(model.source.name).name)))
    for path in places:
        if path.is_file() and digest_of(path) == model.source.sha256:
            return path
    there = [path for path in places if path.is_file()]
    raise UserError(
        f"runtime={RUNTIME} needs the weights that {model.folder} was exported from, {model.source.name}: "
        + (f"{there[0]} was changed since" if there else f"{folder.with_suffix('.pt').name} is not beside it"),
        remedy="put them beside it, export it again, or use another runtime",
    )

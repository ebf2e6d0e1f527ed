"""A model to call with pictures, in this process: `Detector(...)(picture)`."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from steadyolo.errors import SteadyError, UserError
from steadyolo.serve.headers import read_header
from steadyolo.serve.letterbox import Shape, choose_shape
from steadyolo.serve.results import Result
from steadyolo.serve.served_model import ServedModel
from steadyolo.serve.service import BadImage, DetectOptions
from steadyolo.serve.session import CompilesShapes, Session
from steadyolo.serve.shapes import shapes_of

Source = str | Path | bytes | NDArray[np.uint8] | Any  # the last: a PIL image
_BYTES_OF_HEADERS = 1 << 16


class Detector:
    """What a session finds on pictures. One call at a time; calls from several threads wait for each other."""

    def __init__(self, model: ServedModel, session: Session, *, max_pixels: int | None = None) -> None:
        self.model = model
        self.session = session
        self._max_pixels = max_pixels
        self._engine: Any = None  # made at the first call: OpenCV loads while the session compiles
        self._lock = threading.Lock()

    @overload
    def __call__(self, source: Sequence[Source], **options: Any) -> list[Result]: ...
    @overload
    def __call__(self, source: Source, **options: Any) -> Result: ...

    def __call__(self, source: Any, **options: Any) -> Any:
        """What is found on a picture, or on each of a list of them.

        A picture is a path, the bytes of a file, an array (height, width, 3) in BGR as OpenCV reads it, or a PIL image.
        Options are those of `DetectOptions`: conf, iou, max_det, classes, agnostic_nms.
        Raises: BadImage; UserError for an option that there is not; OSError for a file that cannot be read.
        """
        asked = options_of(options)
        with self._lock:
            if isinstance(source, list | tuple):
                return [self._detect(one, asked) for one in source]
            return self._detect(source, asked)

    def close(self) -> None:
        """Give the session's memory back."""
        with self._lock:
            self.session.close()

    def _detect(self, source: Source, options: DetectOptions) -> Result:
        begin = time.perf_counter()
        path = str(source) if isinstance(source, str | Path) else None
        data = Path(source).read_bytes() if isinstance(source, str | Path) else source
        engine = self._engine or self._started(data)
        picture = engine.decode(data) if isinstance(data, bytes) else as_picture(data)
        decoded = time.perf_counter()
        prepared = engine.prepare(picture)
        ready = time.perf_counter()
        outputs = self.session.run(prepared.image[None])
        ran = time.perf_counter()
        result: Result = engine.finish(outputs, prepared, options)
        speed_ms = {
            "decode": (decoded - begin) * 1000,
            "preprocess": (ready - decoded) * 1000,
            "inference": (ran - ready) * 1000,
            "postprocess": (time.perf_counter() - ran) * 1000,
        }
        return replace(result, orig_img=picture, path=path, speed=speed_ms)

    def _started(self, first: Any) -> Any:
        """The engine. While its libraries load, the session compiles the shape that the first picture will have."""
        shapes_px = shapes_of(self.model)
        compiling = None
        if isinstance(self.session, CompilesShapes):
            shape_px = choose_shape([_size_of(first) or self.model.shape_px], shapes_px)
            compiling = threading.Thread(target=self._compile, args=(shape_px,), daemon=True)
            compiling.start()
        from steadyolo.serve.engine import Engine
        from steadyolo.serve.pictures import MAX_PIXELS

        limit = MAX_PIXELS if self._max_pixels is None else self._max_pixels
        self._engine = Engine(self.model, self.session, shapes_px=shapes_px, max_pixels=limit)
        if compiling is not None:
            compiling.join()
        return self._engine

    def _compile(self, shape_px: Shape) -> None:
        if isinstance(self.session, CompilesShapes):
            with suppress(SteadyError):  # the run that follows meets the same fault, in the caller's thread
                self.session.compile((1, 3, *shape_px))


def options_of(options: dict[str, Any]) -> DetectOptions:
    """Raises: UserError for a name that is no option."""
    if isinstance(options.get("classes"), int):
        options = options | {"classes": (options["classes"],)}
    elif options.get("classes") is not None:
        options = options | {"classes": tuple(options["classes"])}
    try:
        return DetectOptions(**options)
    except TypeError:
        known = DetectOptions.__slots__
        wrong = ", ".join(name for name in options if name not in known)
        raise UserError(f"no option is called {wrong}", remedy=f"use {', '.join(known)}") from None


def as_picture(source: Any) -> NDArray[np.uint8]:
    """BGR pixels of an array or a PIL image. Raises: BadImage for an array of another type or shape."""
    if not isinstance(source, np.ndarray):
        if not hasattr(source, "convert"):
            raise BadImage(
                f"a {type(source).__name__} is no picture", remedy="give a path, bytes, an array or a PIL image"
            )
        from steadyolo.serve.pictures import from_pil

        return from_pil(source)
    if source.dtype != np.uint8 or source.ndim not in (2, 3) or 0 in source.shape:
        raise BadImage(
            f"an array of shape {source.shape} and type {source.dtype} is no picture",
            remedy="give uint8 of shape (height, width, 3) in BGR",
        )
    if source.ndim == 2 or source.shape[2] == 1:
        source = np.repeat(source.reshape(*source.shape[:2], 1), 3, axis=2)
    if source.shape[2] != 3:
        raise BadImage(f"an array of {source.shape[2]} channels is no picture", remedy="give 3, in BGR")
    return np.ascontiguousarray(source)


def _size_of(source: Any) -> Shape | None:
    """Height and width as far as they are known without decoding."""
    if isinstance(source, bytes):
        try:
            header = read_header(source)
        except BadImage:
            return None
        return header.height_px, header.width_px
    if isinstance(source, np.ndarray) and source.ndim >= 2:
        return source.shape[0], source.shape[1]
    size = getattr(source, "size", None)
    return (size[1], size[0]) if isinstance(size, tuple) and len(size) == 2 else None

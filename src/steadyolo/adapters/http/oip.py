"""/v2: the Open Inference Protocol, as clients of Triton and KServe speak it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from steadyolo.adapters.http.bodies import Bodies
from steadyolo.adapters.http.detect import check_answering, status_of
from steadyolo.adapters.http.limits import HttpLimits
from steadyolo.adapters.http.problems import Refused, the_header
from steadyolo.adapters.http.tensors import input_of, outputs_of, read_request, write_answer
from steadyolo.adapters.http.wanted import while_wanted
from steadyolo.serve.served_model import ServedModel
from steadyolo.serve.service import ModelStatus, NotReady, Service
from steadyolo.version import __version__

EXTENSIONS = ["binary_tensor_data", "model_configuration", "model_repository", "model_repository(unload_dependents)"]
_CONTROL_BYTES = 64 << 10
_STATES = {"ready": "READY", "unloaded": "UNAVAILABLE", "failed": "UNAVAILABLE"}


class OpenInference:
    """The endpoints under /v2. `may_control`: models may be loaded and unloaded over HTTP."""

    def __init__(self, service: Service, limits: HttpLimits, bodies: Bodies, *, may_control: bool) -> None:
        self._service = service
        self._limits = limits
        self._bodies = bodies
        self._may_control = may_control

    async def server(self, request: Request) -> Response:
        """What this server is and can."""
        return JSONResponse({"name": "steadyolo", "version": __version__, "extensions": EXTENSIONS})

    async def model(self, request: Request) -> Response:
        """Names, types and shapes of what the model takes and gives."""
        status, model = self._known(request)
        about = {
            "name": status.name,
            "versions": list(status.versions),
            "platform": status.session or "",
            "inputs": [input_of(model).to_json()],
            "outputs": [one.to_json() for one in outputs_of(model)],
        }
        return JSONResponse(about)

    async def config(self, request: Request) -> Response:
        """The same as Triton's clients ask for it."""
        status, model = self._known(request)

        def tensors(of: Any) -> list[dict[str, Any]]:
            return [{"name": one.name, "data_type": "TYPE_FP32", "dims": list(one.shape)} for one in of]

        about = {
            "name": status.name,
            "platform": status.session or "",
            "backend": "steadyolo",
            "max_batch_size": 0,
            "input": tensors([input_of(model)]),
            "output": tensors(outputs_of(model)),
        }
        return JSONResponse(about)

    async def ready(self, request: Request) -> Response:
        """200 when the model is warm."""
        status = status_of(self._service, request.path_params["name"], request.path_params.get("version"))
        if status.state != "ready":
            raise NotReady(f"{status.name} is {status.state} {status.why}".strip(), retry_after_s=1.0)
        return JSONResponse({"name": status.name, "ready": True})

    async def infer(self, request: Request) -> Response:
        """The graph's own outputs for a tensor."""
        status, model = self._known(request)
        check_answering(status)
        version = request.path_params.get("version")
        async with self._bodies.read(request) as body:
            asked = await read_request(body, the_header(request, "inference-header-content-length"), model)
            limit_s = min(asked.timeout_s or self._limits.answer_timeout_s, self._limits.answer_timeout_s)
            work = self._service.infer(status.name, asked.images, version=version, timeout_s=limit_s)
            answer = await while_wanted(request, work, within_s=limit_s + 1)
        about = {"model_name": status.name, "model_version": answer.version}
        if asked.id is not None:
            about["id"] = asked.id
        missing = set(asked.is_binary) - set(answer.outputs)
        if missing:
            raise Refused(
                400, "bad_tensor", f"this graph gives {sorted(answer.outputs)}", remedy="ask for one of these outputs"
            )
        head_length, pieces = write_answer(about, answer.outputs, asked.is_binary)
        if head_length is None:
            return StreamingResponse(_in_turns(pieces), media_type="application/json")
        headers = {"inference-header-content-length": str(head_length)}
        return Response(b"".join(pieces), media_type="application/octet-stream", headers=headers)

    async def index(self, request: Request) -> Response:
        """Every version of every model, and its state."""
        asked = await self._control(request)
        rows: list[dict[str, str]] = []
        for one in self._service.readiness().models:
            state = _STATES.get(one.state, "LOADING")
            if state == "READY" or not asked.get("ready"):
                versions = one.versions or ("",)
                rows += [{"name": one.name, "version": each, "state": state, "reason": one.why} for each in versions]
        return JSONResponse(rows)

    async def load(self, request: Request) -> Response:
        """Load a model; answers when it is warm."""
        asked = await self._control(request)
        if asked.get("parameters"):
            raise Refused(
                400, "bad_request", "a model cannot be loaded with parameters of a request", remedy="leave them out"
            )
        name = self._controlled(request)
        try:
            async with asyncio.timeout(self._limits.load_timeout_s):
                await self._service.load(name)
        except TimeoutError:
            raise NotReady(f"{name} is still loading", retry_after_s=10.0) from None
        return JSONResponse({})

    async def unload(self, request: Request) -> Response:
        """Give a model's memory back."""
        await self._control(request)
        await self._service.unload(self._controlled(request))
        return JSONResponse({})

    def _known(self, request: Request) -> tuple[ModelStatus, ServedModel]:
        status = status_of(self._service, request.path_params["name"], request.path_params.get("version"))
        if status.model is None:
            raise NotReady(f"{status.name} is {status.state} {status.why}".strip(), retry_after_s=1.0)
        return status, status.model

    def _controlled(self, request: Request) -> str:
        if not self._may_control:
            raise Refused(
                403,
                "not_allowed",
                "this server lets nobody load or unload models: it knows no tokens and is not on the loopback address",
                remedy="start it with --token-file",
            )
        return status_of(self._service, request.path_params["name"]).name

    async def _control(self, request: Request) -> dict[str, Any]:
        async with self._bodies.read(request) as body:
            try:
                asked = json.loads(body[:_CONTROL_BYTES]) if body.strip() else {}
            except (ValueError, RecursionError):
                asked = None
        if not isinstance(asked, dict):
            raise Refused(400, "bad_request", "the body is no JSON object", remedy="send {} or nothing")
        return asked


async def _in_turns(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
        await asyncio.sleep(0)

"""/v1: pictures in, objects out; and the models that are here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from steadyolo.adapters.http.bodies import Bodies
from steadyolo.adapters.http.fetching import Fetching
from steadyolo.adapters.http.health import Health
from steadyolo.adapters.http.limits import HttpLimits
from steadyolo.adapters.http.metrics import Metrics
from steadyolo.adapters.http.problems import Refused, the_header
from steadyolo.adapters.http.questions import Question, read_question
from steadyolo.adapters.http.uploads import Upload, read_uploads
from steadyolo.adapters.http.wanted import while_wanted
from steadyolo.serve.service import Answer, BadImage, ModelStatus, NoSuchModel, NotReady, Service


def status_of(service: Service, name: str, version: str | None = None) -> ModelStatus:
    """The model of that name as it stands. Raises: NoSuchModel."""
    models = service.readiness().models
    status = next((one for one in models if one.name == name), None)
    if status is None:
        here = ", ".join(one.name for one in models)
        raise NoSuchModel(f"no model is named {name[:100]!r} here", remedy=f"use one of: {here}")
    if version is not None and status.versions and version not in status.versions:
        raise NoSuchModel(
            f"{name} has no version {version[:100]!r} here", remedy=f"use one of: {', '.join(status.versions)}"
        )
    return status


def check_answering(status: ModelStatus) -> ModelStatus:
    """Raises: NotReady before anything is read for a model that cannot answer. `waiting` ones may be loaded."""
    if status.state in {"loading", "warming"} and status.session is None:
        raise NotReady(f"{status.name} is {status.state}", retry_after_s=1.0)
    if status.state == "failed":
        raise NotReady(f"{status.name} could not be loaded: {status.why}", retry_after_s=30.0)
    return status


class Detect:
    """The endpoints under /v1."""

    def __init__(self, service: Service, health: Health, limits: HttpLimits, bodies: Bodies, metrics: Metrics) -> None:
        self._service = service
        self._health = health
        self._limits = limits
        self._bodies = bodies
        self._metrics = metrics
        self._fetching = Fetching(limits)

    async def models(self, request: Request) -> Response:
        """What is here, and how it stands."""
        models = [_model_json(one) for one in self._service.readiness().models]
        return JSONResponse({"models": models, "ready": self._health.is_ready})

    async def detect(self, request: Request) -> Response:
        """What the model finds on the picture of the body, or on each of several."""
        name = request.path_params["name"]
        question = read_question(request.query_params)
        kind = _content_type(request)
        check_answering(status_of(self._service, name, question.version))
        async with self._bodies.read(request) as body:
            if not body:
                raise Refused(
                    400,
                    "empty",
                    "the body is empty",
                    remedy="send one: curl -H 'Content-Type: image/jpeg' --data-binary @…",
                )
            limit_s = self._limits.answer_timeout_s + 1  # the service keeps to its own; this is for when it does not
            if kind == "multipart/form-data":
                uploads = await read_uploads(body, request.headers["content-type"], self._limits.num_pictures)
                return await while_wanted(request, self._several(name, uploads, question), within_s=limit_s)
            if kind == "application/json":
                body = await self._fetching.picture(body)
            answer = await while_wanted(request, self._answer(name, body, question), within_s=limit_s)
        return _json(_answer_json(answer), answer.seconds)

    async def _several(self, name: str, uploads: list[Upload], question: Question) -> Response:
        asked = [self._answer(name, upload.data, question) for upload in uploads]
        answers: list[Answer] = []
        for upload, answer in zip(uploads, await asyncio.gather(*asked, return_exceptions=True), strict=True):
            if isinstance(answer, BadImage):
                raise BadImage(f"{upload.name[:100]}: {answer.message}", remedy=answer.remedy)
            if isinstance(answer, BaseException):
                raise answer
            answers.append(answer)
        longest = max(answers, key=lambda answer: sum(answer.seconds.values()))
        images = [
            {"file": upload.name, **_answer_json(answer)} for upload, answer in zip(uploads, answers, strict=True)
        ]
        return _json({"images": images}, longest.seconds)

    async def _answer(self, name: str, image: bytes, question: Question) -> Answer:
        answer = await self._service.detect(
            name, image, question.options, version=question.version, timeout_s=self._limits.answer_timeout_s
        )
        self._metrics.answered(answer)
        return answer


def _content_type(request: Request) -> str:
    given = the_header(request, "content-type")
    kind = "application/octet-stream" if given is None else given.partition(";")[0].strip().lower()
    if kind.startswith("image/") or kind in {"application/octet-stream", "multipart/form-data", "application/json"}:
        return kind
    raise Refused(
        415,
        "content_type",
        f"a body of type {kind[:100]!r} is not read",
        remedy="send image/jpeg or another image/*, application/octet-stream or multipart/form-data",
        headers={"accept": "image/*, application/octet-stream, multipart/form-data"},
    )


def _answer_json(answer: Answer) -> dict[str, Any]:
    return {
        "model": answer.model,
        "version": answer.version,
        "session": answer.session,
        "image": {"height": answer.height_px, "width": answer.width_px},
        "objects": answer.objects,
        "seconds": {stage: round(seconds, 6) for stage, seconds in answer.seconds.items()},
    }


def _model_json(status: ModelStatus) -> dict[str, Any]:
    about: dict[str, Any] = {
        "name": status.name,
        "state": status.state,
        "why": status.why,
        "versions": list(status.versions),
        "session": status.session,
        "warm_ms": None if status.warm_s is None else round(1e3 * status.warm_s, 2),
        "required": status.is_required,
        "resident_bytes": status.num_bytes,
    }
    if (model := status.model) is not None:
        about |= {
            "version": model.version,
            "task": model.task,
            "classes": list(model.classes),
            "shape": {"height": model.shape_px[0], "width": model.shape_px[1], "any": model.is_dynamic},
            "source": {"name": model.source.name, "run": model.source.run, "step": model.source.step},
        }
    return about


def _json(body: Mapping[str, Any], seconds: Mapping[str, float]) -> Response:
    timing = ", ".join(f"{stage};dur={1e3 * length_s:.2f}" for stage, length_s in seconds.items())
    data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(data, media_type="application/json", headers={"server-timing": timing})

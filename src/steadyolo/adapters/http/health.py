"""Alive, and ready: the one place that says so, for probes, figures and lists of models."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from steadyolo.adapters.http.problems import Problem, retry_after
from steadyolo.serve.service import Service


class Health:
    """Alive, and ready: under the protocol's names and those that people expect."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.is_front_ready = False
        self.is_draining = False

    @property
    def is_ready(self) -> bool:
        """The models are warm, this process too, and it is not about to end."""
        return self.is_front_ready and not self.is_draining and self._service.readiness().is_ready

    async def live(self, request: Request) -> Response:
        """This process answers."""
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        """The next request will be as fast as the thousandth."""
        if self.is_ready:
            return JSONResponse({"ready": True})
        models = self._service.readiness().models
        waits = [f"{one.name} is {one.state}" for one in models if one.is_required and one.state != "ready"]
        why = "it is draining" if self.is_draining else ", ".join(waits) or "it is starting"
        problem = Problem(503, "not_ready", f"not ready: {why}", "wait until it is", retry_after(1.0))
        return problem.response(request.url.path)

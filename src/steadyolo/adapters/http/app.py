"""The ASGI application: one table of routes, who may come in, and what is counted."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route
from starlette.types import Message, Receive, Scope, Send

from steadyolo.adapters.http.bodies import Bodies
from steadyolo.adapters.http.detect import Detect
from steadyolo.adapters.http.health import Health
from steadyolo.adapters.http.lifespan import live
from steadyolo.adapters.http.limits import HttpLimits, Rates, Tokens, network_of
from steadyolo.adapters.http.metrics import CONTENT_TYPE, Metrics
from steadyolo.adapters.http.oip import OpenInference
from steadyolo.adapters.http.openapi import openapi_document
from steadyolo.adapters.http.pages import page
from steadyolo.adapters.http.problems import CLIENT_LEFT, Refused, problem_of, the_header
from steadyolo.errors import SteadyError
from steadyolo.serve.service import Service

Endpoint = Callable[[Request], Awaitable[Response]]


class App:
    """What is served for a `Service`. `health` is told when this process is warm, and when it is about to end."""

    def __init__(
        self, service: Service, limits: HttpLimits, tokens: Tokens | None = None, *, may_control: bool = True
    ) -> None:
        self.service = service
        self.health = Health(service)
        self._tokens = tokens or Tokens([])
        self._rates = Rates(limits.requests_per_s, limits.num_burst)
        bodies = Bodies(limits)
        self.metrics = Metrics(service, self.health, lambda: bodies.room.held_bytes)
        self._v1 = v1 = Detect(service, self.health, limits, bodies, self.metrics)
        v2 = OpenInference(service, limits, bodies, may_control=may_control)
        self.asked_s = time.monotonic()  # when the last request came
        self.is_warming = False  # requests that it makes itself are not counted
        figures = _routes(self._metrics_text, "GET", "/metrics")
        self._open = [  # anybody may ask for these: nothing of a model is in them
            *_routes(self.health.live, "GET", "/healthz", "/v2/health/live"),
            *_routes(self.health.ready, "GET", "/readyz", "/v2/health/ready"),
            *_routes(page("page.html"), "GET", "/"),
            *_routes(page("docs.html"), "GET", "/docs"),
            *_routes(self._openapi, "GET", "/openapi.json"),
            *(figures if limits.are_metrics_open else []),
        ]
        self._counted = [  # these cost time of the models
            *_routes(v1.detect, "POST", "/v1/models/{name}/detect"),
            *_routes(v2.infer, "POST", "/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"),
            *_routes(v2.load, "POST", "/v2/repository/models/{name}/load"),
            *_routes(v2.unload, "POST", "/v2/repository/models/{name}/unload"),
        ]
        self._routes = [
            *self._counted,
            *self._open,
            *_routes(v1.models, "GET", "/v1/models"),
            *_routes(v2.server, "GET", "/v2"),
            *_routes(v2.model, "GET", "/v2/models/{name}", "/v2/models/{name}/versions/{version}"),
            *_routes(v2.config, "GET", "/v2/models/{name}/config", "/v2/models/{name}/versions/{version}/config"),
            *_routes(v2.ready, "GET", "/v2/models/{name}/ready", "/v2/models/{name}/versions/{version}/ready"),
            *_routes(v2.index, "POST", "/v2/repository/index"),
            *figures,
        ]

    @property
    def has_tokens(self) -> bool:
        """Only who holds a token may use it."""
        return bool(self._tokens)

    async def without_asking(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a detection of our own, whoever may ask otherwise."""
        try:
            response = await self._v1.detect(Request(scope, receive))
        except (SteadyError, TimeoutError) as error:
            response = problem_of(error).response(scope["path"])
        await response(scope, receive, send)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await live(self.service, self.health, receive, send)
        if scope["type"] != "http":
            return
        started_s, self.asked_s = time.perf_counter(), time.monotonic()
        status, route_path = 0, "other"  # 0: no answer has begun

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message["headers"], (b"x-content-type-options", b"nosniff")]
                if self.health.is_draining:
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            await send(message)

        try:
            route, refusal = self._routed(scope)
            if route is not None:
                route_path = route.path
            request = Request(scope, receive)
            self._admit(request, route)
            if refusal is not None:
                raise refusal
            response = await route.endpoint(request)  # type: ignore[union-attr]
            await response(scope, receive, sent)
        except Exception as error:  # the edge of a request: whatever it was, this one ends and the others go on
            problem = problem_of(error)
            if not status:
                await problem.response(scope["path"])(scope, receive, sent)
            elif problem.status != CLIENT_LEFT:
                raise  # half of the answer is gone already: the connection has to end
        finally:
            if not self.is_warming:
                seconds = time.perf_counter() - started_s
                self.metrics.requested(route_path, scope["method"], status or CLIENT_LEFT, seconds)

    def _routed(self, scope: Scope) -> tuple[Route | None, Refused | None]:
        """The route of a request, and why it is refused all the same."""
        allowed: set[str] = set()
        partly: Route | None = None
        for route in self._routes:
            match, more = route.matches(scope)
            if match is Match.FULL:
                scope.update(more)
                return route, None
            if match is Match.PARTIAL:
                partly, allowed = route, allowed | set(route.methods or ())
        if partly is not None:
            names = ", ".join(sorted(allowed))
            remedy = f"use {names}"
            return partly, Refused(
                405, "method", f"{scope['method']} is not answered here", remedy=remedy, headers={"allow": names}
            )
        return None, Refused(404, "not_found", "there is nothing at this path", remedy="see /docs for what there is")

    def _admit(self, request: Request, route: Route | None) -> None:
        """Raises: Refused for a client that is not known, or asks too often."""
        if route in self._open:
            return
        address = network_of(request.client.host if request.client else "")
        holder = self._tokens.holder(the_header(request, "authorization")) if self._tokens else None
        if self._tokens and holder is None:
            self._rates.take(address)
            raise Refused(
                401,
                "token",
                "a token that is known here is needed",
                remedy="send it in the header Authorization: Bearer TOKEN",
                headers={"www-authenticate": "Bearer"},
            )
        if route in self._counted:
            self._rates.take(holder or address)

    async def _openapi(self, request: Request) -> Response:
        return JSONResponse(openapi_document(has_tokens=bool(self._tokens)))

    async def _metrics_text(self, request: Request) -> Response:
        return Response(self.metrics.text(), headers={"content-type": CONTENT_TYPE})


def _routes(endpoint: Endpoint, method: str, *paths: str) -> list[Route]:
    return [Route(path, endpoint, methods=[method]) for path in paths]

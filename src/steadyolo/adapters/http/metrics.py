"""Figures for Prometheus."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from steadyolo.adapters.http.health import Health
from steadyolo.serve.service import Answer, Service, State

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """Counts what the front answers, and asks the service for the rest when it is scraped."""

    def __init__(self, service: Service, health: Health, held_bytes: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(_OfService(service, health, held_bytes))
        self._requests = Counter(
            "steadyolo_requests", "Requests, by route and status.", ("route", "method", "code"), registry=self._registry
        )
        self._request_seconds = Histogram(
            "steadyolo_request_seconds",
            "From the end of a request's head to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._stage_seconds = Histogram(
            "steadyolo_stage_seconds",
            "Time of a picture in each stage.",
            ("model", "stage"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._pictures = Counter(
            "steadyolo_pictures",
            "Pictures answered, by what answered.",
            ("model", "version", "session"),
            registry=self._registry,
        )

    def requested(self, route: str, method: str, code: int, seconds: float) -> None:
        """One request was answered."""
        self._requests.labels(route, method, str(code)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def answered(self, answer: Answer) -> None:
        """One picture was answered."""
        self._pictures.labels(answer.model, answer.version, answer.session).inc()
        for stage, seconds in answer.seconds.items():
            self._stage_seconds.labels(answer.model, stage).observe(seconds)

    def forget(self) -> None:
        """Begin to count again."""
        for one in (self._requests, self._request_seconds, self._stage_seconds, self._pictures):
            one.clear()

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)


class _OfService(Collector):
    def __init__(self, service: Service, health: Health, held_bytes: Callable[[], int]) -> None:
        self._service = service
        self._health = health
        self._held_bytes = held_bytes

    def describe(self) -> list[Metric]:
        return []  # asked for when registered; the service may not have started

    def collect(self) -> Iterator[Metric]:
        readiness, figures = self._service.readiness(), self._service.figures()
        yield _gauge("ready", "1 when /readyz says yes.", float(self._health.is_ready))
        yield _gauge("draining", "1 from the moment it was asked to end.", float(self._health.is_draining))
        yield _gauge("queued", "Pictures that wait.", figures.num_queued)
        yield _gauge("running", "Pictures that are computed.", figures.num_running)
        yield _count("restarts", "Workers started again.", figures.num_restarts)
        yield _count("fallbacks", "Answers that the fallback gave.", figures.num_fallbacks)
        yield _gauge("body_bytes", "Bytes of bodies that are held.", self._held_bytes())
        for name, value in figures.more.items():
            yield _gauge(re.sub(r"[^a-z0-9_]", "_", name.lower()), name, value)
        resident = GaugeMetricFamily("steadyolo_worker_bytes", "Resident memory of each worker.", labels=["worker"])
        for worker, num_bytes in figures.resident_bytes.items():
            resident.add_metric([worker], num_bytes)
        yield resident
        run = GaugeMetricFamily("steadyolo_model_warm_seconds", "A picture's time when warm.", labels=["model"])
        state = GaugeMetricFamily("steadyolo_model_state", "1 for the state of a model.", labels=["model", "state"])
        size = GaugeMetricFamily("steadyolo_model_bytes", "Resident memory of a model.", labels=["model"])
        about = GaugeMetricFamily(
            "steadyolo_model_info", "What answers for a model now.", labels=["model", "version", "session"]
        )
        for one in readiness.models:
            for known in get_args(State):
                state.add_metric([one.name, known], float(one.state == known))
            size.add_metric([one.name], one.num_bytes)
            if one.warm_s is not None:
                run.add_metric([one.name], one.warm_s)
            if one.model is not None:
                about.add_metric([one.name, one.model.version, one.session or ""], 1)
        yield from (state, size, run, about)


def _gauge(name: str, text: str, value: float) -> Metric:
    family = GaugeMetricFamily(f"steadyolo_{name}", text)
    family.add_metric([], value)
    return family


def _count(name: str, text: str, value: float) -> Metric:
    family = CounterMetricFamily(f"steadyolo_{name}", text)
    family.add_metric([], value)
    return family

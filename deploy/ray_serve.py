"""The same application as replicas of Ray Serve, where one machine is not enough.

    pip install steadyolo "ray[serve]"
    STEADYOLO_SERVE="best=/models/best.served --threads 2" serve run deploy.ray_serve:app

The words of STEADYOLO_SERVE are those of `steadyolo serve`; Ray has the port. A replica is healthy once its models
are warm, and is drained before it ends. Each has worker processes of its own.
"""

from __future__ import annotations

import os
import shlex
from typing import Any

from ray import serve

WORDS = "STEADYOLO_SERVE"


def _application() -> Any:
    from steadyolo.cli.serve import application

    return application(shlex.split(os.environ[WORDS]))


@serve.deployment(
    name="steadyolo",
    num_replicas=int(os.environ.get("STEADYOLO_REPLICAS", "1")),
    max_ongoing_requests=64,
    graceful_shutdown_timeout_s=40,
    ray_actor_options={"num_cpus": 2, "runtime_env": {"env_vars": {WORDS: os.environ.get(WORDS, "")}}},
)
@serve.ingress(_application)
class Steadyolo:
    """One replica."""


app = Steadyolo.bind()

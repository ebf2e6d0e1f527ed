"""`EstimateProcess`: estimates that are made beside a training, in a process that ends when they are done.

What tracing a step loads and leaves behind, some 240 MB, a training that is short of memory has better use for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

from steadyolo.errors import SteadyError, UserError
from steadyolo.plan.fit import Fit
from steadyolo.plan.memory import MemoryEstimate, Peak, Workload

_EXIT_TIMEOUT_S = 5.0


class EstimateProcess:
    """Called as `estimate` is, once entered. Raises what it raises; `SteadyError` when the process is killed."""

    def __enter__(self) -> Self:
        package = str(Path(__file__).parents[3])  # where this package was imported from
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH")))),
                "CUDA_VISIBLE_DEVICES": "",  # it needs none, and would take memory of one
                "OMP_NUM_THREADS": "1",
            },
            start_new_session=True,  # a signal to the training is the training's to answer
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._process.communicate(timeout=_EXIT_TIMEOUT_S)  # it ends with its input
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def __call__(self, workload: Workload) -> MemoryEstimate:
        questions, answers = cast("IO[bytes]", self._process.stdin), cast("IO[bytes]", self._process.stdout)
        try:
            questions.write(json.dumps(asdict(workload)).encode() + b"\n")
            questions.flush()
            line = answers.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise SteadyError(
                f"the memory that {workload.model} needs could not be estimated: the process that does it ended with "
                f"code {self._process.wait()}",
                remedy="free some memory, or run steadyolo plan for the same training to see what it says",
            )
        answer = json.loads(line)
        if "error" in answer:
            raise UserError(answer["error"], remedy=answer["remedy"])
        return MemoryEstimate(**{phase: Peak(**peak) for phase, peak in answer.items()})


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    from steadyolo.adapters.ultralytics.estimate import estimate

    try:
        return asdict(estimate(Workload(**{**asked, "fit": Fit(**asked["fit"])})))
    except UserError as error:
        return {"error": error.message, "remedy": error.remedy}


def main() -> None:
    """Answer one workload a line, as JSON, until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what upstream prints is no answer
    for line in sys.stdin:
        answers.write(json.dumps(_answer(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()

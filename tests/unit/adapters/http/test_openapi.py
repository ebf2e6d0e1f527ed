"""The OpenAPI document is true: requests made from it are answered as it says, whatever they hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.core.failures import FailureGroup
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from steadyolo.adapters.http import openapi
from steadyolo.adapters.http.openapi import openapi_document
from tests.unit.adapters.http.front import running

MAX_EXAMPLES = 10
OPERATIONS = [
    (path, method, mode)
    for path, methods in openapi_document(has_tokens=False)["paths"].items()
    for method in methods
    for mode in (GenerationMode if method == "post" else [GenerationMode.POSITIVE])  # a path alone cannot be wrong
    if method != "parameters" and not path.endswith("load")  # the model stays loaded for the others
]


@pytest.fixture(scope="module")
def document() -> Iterator[Any]:
    with running() as front:
        yield schemathesis.openapi.from_url(f"http://127.0.0.1:{front.port}/openapi.json")


@pytest.mark.parametrize(("path", "method", "mode"), OPERATIONS)
def test_answers_are_as_the_document_says(document: Any, path: str, method: str, mode: GenerationMode) -> None:
    operation = document[path][method.upper()]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=MAX_EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any) -> None:
        if "name" in operation.path_parameters and len(str(case.path_parameters["name"])) % 3:
            case.path_parameters["name"] = "small"
        case.call_and_validate(excluded_checks=[positive_data_acceptance])  # bytes fit the schema, and are no picture

    ask()


def test_a_document_that_is_not_true_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(openapi._SCHEMAS["Server"]["properties"], "version", {"type": "integer"})
    with running() as front:
        untrue = schemathesis.openapi.from_url(f"http://127.0.0.1:{front.port}/openapi.json")
        with pytest.raises(FailureGroup):
            untrue["/v2"]["GET"].Case().call_and_validate()

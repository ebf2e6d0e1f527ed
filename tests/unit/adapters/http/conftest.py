from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.adapters.http.front import Running, running


@pytest.fixture(scope="package")
def _shared() -> Iterator[Running]:
    with running() as front:
        yield front


@pytest.fixture
def front(_shared: Running) -> Running:
    """A front that others use too; its model is ready again for each test."""
    _shared.service.failure = None
    assert _shared.ask("POST", "/v2/repository/models/small/load").status == 200
    return _shared

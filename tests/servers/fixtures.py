"""Fixtures of the servers. One server serves a whole session, and each worker of pytest-xdist has its own."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from steadyolo.testing.fault_proxy import FaultProxy
from tests.servers.azurite import AzuriteServer, NotHere
from tests.servers.seaweed import ADMIN, SeaweedServer, aws_environment


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    """A server for tests that leave it running."""
    with SeaweedServer(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture(scope="session")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    """A second server, as in another region."""
    with SeaweedServer(tmp_path_factory.mktemp("replica")) as server:
        yield server


@pytest.fixture
def own_seaweed(tmp_path: Path) -> Iterator[SeaweedServer]:
    """A server for one test, which may kill it."""
    with SeaweedServer(tmp_path / "seaweed") as server:
        yield server


@pytest.fixture
def aws() -> Iterator[None]:
    """The administrator's credentials in the environment, and nobody else's."""
    with aws_environment(ADMIN):
        yield


@pytest.fixture
def prefix() -> str:
    """A prefix that nobody else uses."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def s3_url(seaweed: SeaweedServer, aws: None, prefix: str) -> str:
    """The URL of an empty place in S3, with credentials to write there."""
    return seaweed.url(prefix)


@pytest.fixture
def fault_proxy(seaweed: SeaweedServer) -> Iterator[FaultProxy]:
    """A proxy before the server: give its `endpoint` to `seaweed.url`."""
    with FaultProxy(seaweed.port) as proxy:
        yield proxy


@pytest.fixture
def fresh_bucket(seaweed: SeaweedServer) -> Iterator[str]:
    """The name of a new bucket, for tests that change a bucket's settings. Costs more than a prefix."""
    name, client = f"bucket-{uuid.uuid4().hex[:12]}", seaweed.client()
    client.create_bucket(Bucket=name)
    yield name
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
        for listed in page.get("Contents", ()):
            client.delete_object(Bucket=name, Key=listed["Key"])
    client.delete_bucket(Bucket=name)


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzuriteServer]:
    """Azure's emulator. Skips what asks for it where it cannot be had."""
    try:
        with AzuriteServer(tmp_path_factory.mktemp("azurite")) as server:
            yield server
    except NotHere as why:
        pytest.skip(f"no emulator of Azure: {why}")

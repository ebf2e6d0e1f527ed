"""A second double of S3 on loopback: ministack, for settings that SeaweedFS lacks. It checks no signatures."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import psutil

from steadyolo.testing.free_ports import free_ports

START_TIMEOUT_S = 60.0


@contextmanager
def ministack(folder: Path) -> Iterator[str]:
    """The endpoint of a new server, which keeps nothing when it ends."""
    (port,) = free_ports(1)
    settings = {
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "IOT_MTLS_ENABLED": "0",  # it would listen on every interface, and so would the next
        "SFTP_ENABLED": "0",
        "SERVICES": "s3",
        "LOG_LEVEL": "WARNING",
        "TMPDIR": str(folder),
    }
    program = Path(sys.executable).with_name("ministack")
    with (folder / "ministack.log").open("ab") as log:
        process = subprocess.Popen(
            [str(program)], cwd=folder, env={**os.environ, **settings}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        endpoint = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answers(endpoint):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "ministack.log").read_text()
            time.sleep(0.05)
        listening = {found.laddr.ip for found in psutil.Process(process.pid).net_connections() if not found.raddr}
        assert listening == {"127.0.0.1"}, f"ministack can be reached from outside: {listening}"
        yield endpoint
    finally:
        process.kill()
        process.wait()


def _answers(endpoint: str) -> bool:
    with suppress(URLError, OSError), urlopen(f"{endpoint}/_ministack/health", timeout=5) as answer:
        return bool(answer.status == 200)
    return False


def client(endpoint: str) -> Any:
    """A boto3 client, which sees the server as it is."""
    import boto3

    return boto3.Session().client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="anybody",
        aws_secret_access_key="anything",
    )

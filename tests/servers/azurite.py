"""Azure's storage on loopback: the emulator `azurite`, where node can run it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path
from types import TracebackType
from typing import Self

from steadyolo.testing.free_ports import free_ports

ACCOUNT = "devstoreaccount1"  # the emulator's own, and its key, which Microsoft's documentation prints
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
CONTAINER = "steady-tests"
_PACKAGE = "azurite@3.35.0"
_NPM = {  # what npm fetches stays in the checkout, and goes with `make clean`
    "npm_config_cache": str(Path(__file__).parents[2] / ".npm_cache"),
    "npm_config_fetch_retries": "0",
    "npm_config_update_notifier": "false",
}
_START_TIMEOUT_S = 90.0  # npm may have to fetch it first


class NotHere(Exception):
    """Why there is no emulator on this machine."""


class AzuriteServer:
    """The emulator with everything in memory, and one container. Use it in a `with`. Raises: `NotHere`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_ports(1)[0]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def variables(self) -> dict[str, str]:
        """The environment in which obstore speaks to it."""
        return {
            "AZURE_STORAGE_USE_EMULATOR": "true",
            "AZURITE_BLOB_STORAGE_URL": f"http://127.0.0.1:{self.port}",
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": ACCOUNT_KEY,
        }

    def __enter__(self) -> Self:
        npx = shutil.which("npx")
        if npx is None:
            raise NotHere("there is no npx, which runs azurite")
        options = ["--blobHost", "127.0.0.1", "--blobPort", str(self.port)]
        options += ["--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--disableTelemetry"]
        log = self.folder / "azurite.log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [npx, "--yes", "--prefer-offline", f"--package={_PACKAGE}", "azurite-blob", *options],
                cwd=self.folder,
                env={**os.environ, **_NPM},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # npx starts node; they end together
            )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(OSError):
                self._create_container()
                return self
            time.sleep(0.05)
        self._stop()
        lines = log.read_text(errors="replace").splitlines() or ["no answer"]
        raise NotHere(f"npx does not start {_PACKAGE}: {lines[-1]}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _create_container(self) -> None:
        path = f"/{ACCOUNT}/{CONTAINER}"
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
        fields = [f"{name}:{value}" for name, value in headers.items()]
        signed = "\n".join(["PUT", *[""] * 11, *fields, f"/{ACCOUNT}{path}", "restype:container"])
        mac = hmac.new(base64.b64decode(ACCOUNT_KEY), signed.encode(), hashlib.sha256)
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(mac.digest()).decode()}"
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}?restype=container", method="PUT", headers=headers
        )
        urllib.request.urlopen(request, timeout=5).close()

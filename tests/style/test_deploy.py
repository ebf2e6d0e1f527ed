"""What `deploy/` says agrees with what there is: options, paths, dependencies."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from steadyolo.adapters.http.openapi import openapi_document
from steadyolo.cli.serve import _parser
from tests.style.tree import ROOT

DEPLOY = ROOT / "deploy"
TRAINING = {"onnx", "safetensors", "torch", "torchvision", "ultralytics"}  # what the container leaves out
BROUGHT = {"opencv-python-headless"}  # what Ultralytics would have brought


def parsed(words: list[str]) -> None:
    """Ends the process, which fails the test, for words that `steadyolo serve` does not know."""
    _parser().parse_args(words)


def test_options_are_known() -> None:
    unit = (DEPLOY / "steadyolo.service").read_text()
    line = re.search(r"^ExecStart=\S+ serve (.*)$", unit, re.MULTILINE)
    assert line
    parsed(shlex.split(line[1].replace("$OPTIONS", "").replace("$MODELS", "best.served")))
    container = yaml_documents()[0]["spec"]["template"]["spec"]["containers"][0]
    parsed(container["args"])
    assert '"steadyolo", "serve", "--host", "0.0.0.0"' in (DEPLOY / "Containerfile").read_text()


def yaml_documents() -> list[dict]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))


def test_probes_ask_what_is_answered() -> None:
    pod = yaml_documents()[0]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    paths = openapi_document(has_tokens=True)["paths"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        path = container[probe]["httpGet"]["path"]
        assert paths[path]["get"]["security"] == [], f"{path} needs a token, which a probe has not"
    assert container["livenessProbe"]["httpGet"]["path"] != container["readinessProbe"]["httpGet"]["path"]
    asked = _parser().parse_args(container["args"])
    sleep_s = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > sleep_s + asked.grace + asked.drain


def test_a_unit_waits_for_the_end() -> None:
    unit = (DEPLOY / "steadyolo.service").read_text()
    asked = _parser().parse_args(["best.served"])
    stop_s = re.search(r"^TimeoutStopSec=(\d+)s$", unit, re.MULTILINE)
    assert stop_s and int(stop_s[1]) > asked.grace + asked.drain


def test_the_container_has_what_serving_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {line.partition("  #")[0] for line in project["dependencies"]}
    wanted = {one for one in wanted if re.split(r"[<>=;\[ ]", one)[0] not in TRAINING}
    given = set(re.findall(r'"([a-z][^"]*[<>]=[^"]*)"', (DEPLOY / "Containerfile").read_text()))
    assert {one for one in given if re.split(r"[<>=;]", one)[0] not in BROUGHT} == wanted


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if not (tool := shutil.which("systemd-analyze")):
        pytest.skip("systemd-analyze is not installed")
    program = shutil.which("true")
    unit = (DEPLOY / "steadyolo.service").read_text().replace("/opt/steadyolo/bin/steadyolo", str(program))
    file = tmp_path / "steadyolo.service"
    file.write_text(re.sub(r"^User=.*$", "", unit, flags=re.MULTILINE))
    done = subprocess.run([tool, "verify", str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr

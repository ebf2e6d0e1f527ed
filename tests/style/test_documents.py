"""Documents run: what they tell a reader to type exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

import steadyolo
from steadyolo.spec.run_spec import OURS, parse_pairs
from tests.style.test_config_names import ultralytics_names
from tests.style.tree import ROOT, text_files

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
DOCUMENTS = [ROOT / "README.md", ROOT / "docs" / "guide.md", ROOT / "docs" / "serving.md"]
MACHINE_PATH = re.compile(r"(?<![\w.~}*-])/(" + "|".join(["work", "root", "home", "Users"]) + r")/\w")


def blocks(path: Path, *languages: str) -> list[str]:
    """The code blocks of a document in any of `languages`."""
    return [code for language, code in BLOCK.findall(path.read_text(encoding="utf-8")) if language in languages]


def shell_lines(path: Path) -> list[str]:
    """Each command line of a document's shell blocks, without its comment; continued lines are joined."""
    joined = "\n".join(blocks(path, "sh")).replace("\\\n", " ")
    return [line.split(" #")[0].strip() for line in joined.splitlines() if line.split(" #")[0].strip()]


@cache
def help_text(*command: str) -> str:
    program = "from steadyolo.cli.main import run; run()"
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-c", program, *command, "--help"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_readme_starts_with_the_two_set_up_commands() -> None:
    assert [line.split()[:2] for line in shell_lines(ROOT / "README.md")[:2]] == [["make", "demo"], ["make", "test"]]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_documents_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for line in shell_lines(path):
        program, *words = line.split()
        if program == "make":
            assert targets.issuperset(word for word in words if "=" not in word), line
        if program == "steadyolo":
            command = words[0]
            assert re.search(rf"^\W*{command}\b", help_text(), re.MULTILINE), f"`steadyolo --help` knows no {command}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_arguments_in_documents_are_accepted(path: Path) -> None:
    for line in shell_lines(path):
        program, *words = line.split()
        if program == "steadyolo" and words[0] in ("train", "plan", "resume"):
            pairs = [word for word in words[1:] if "=" in word]
            known = ultralytics_names() | ({"allow"} if words[0] == "resume" else set())
            parse_pairs(pairs, known)


def test_every_argument_of_ours_is_in_the_guide() -> None:
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    assert not [name for name in OURS if f"`{name}" not in guide]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_python_in_documents_compiles(path: Path) -> None:
    for code in blocks(path, "python"):
        compile(code, path.name, "exec")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_in_documents_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_changelog_tells_of_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert version == steadyolo.__version__
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_no_file_names_a_folder_of_one_machine() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in text_files()
        for match in MACHINE_PATH.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not found


def test_a_folder_of_one_machine_is_noticed() -> None:
    assert MACHINE_PATH.search("see /" + "home/ann/notes")
    assert not MACHINE_PATH.search("https://example.org/" + "home/ann")

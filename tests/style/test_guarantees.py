"""No promise without a test: `docs/GUARANTEES.md` names tests and controls that exist."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.style.tree import ROOT

DOCUMENT = ROOT / "docs" / "GUARANTEES.md"
NAME = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Row:
    """One line of the table: a promise, what shows it, and what fails when its protection is taken away."""

    promise: str
    shown_by: tuple[str, ...]
    control: tuple[str, ...]


def rows(text: str) -> list[Row]:
    """The rows of every table in the document whose second column is named `shown by`."""
    found: list[Row] = []
    in_table = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            in_table = False
        elif cells[1:2] == ["shown by"]:
            in_table = True
        elif in_table and not set(line) <= set("|-: "):
            promise, shown_by, control = cells
            found.append(Row(promise, tuple(NAME.findall(shown_by)), tuple(NAME.findall(control))))
    return found


def exists(reference: str, root: Path) -> bool:
    """True when `tests/….py::name`, `tests/….py::Class::name` or `bench/….py` is there."""
    file, *names = reference.split("::")
    path = root / file
    if not path.is_file():
        return False
    if not names:
        return file.startswith("bench/")
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for name in names:
        body = next((node.body for node in body if getattr(node, "name", None) == name), [])
    return bool(body)


@pytest.mark.parametrize("row", rows(DOCUMENT.read_text(encoding="utf-8")), ids=lambda row: row.promise[:60])
def test_every_promise_is_shown(row: Row) -> None:
    assert row.shown_by, f"nothing shows: {row.promise}"
    assert row.control, f"nothing fails without the protection behind: {row.promise}"
    missing = [reference for reference in (*row.shown_by, *row.control) if not exists(reference, ROOT)]
    assert not missing, f"{row.promise}: there is no {missing}"


def test_promises_are_read() -> None:
    head = "| promise | shown by | control |\n|---|---|---|\n"
    text = f"{head}| Safe | `tests/a.py::test_b`, `bench/c.py` | `tests/a.py::test_d` |\n"
    assert rows(text) == [Row("Safe", ("tests/a.py::test_b", "bench/c.py"), ("tests/a.py::test_d",))]
    assert rows(DOCUMENT.read_text(encoding="utf-8"))


def test_a_test_that_is_not_there_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "a.py").write_text("def test_b():\n    pass\n")
    assert exists("tests/a.py::test_b", tmp_path)
    assert not exists("tests/a.py::test_c", tmp_path)
    assert not exists("tests/a.py", tmp_path)
    assert not exists("tests/b.py::test_b", tmp_path)

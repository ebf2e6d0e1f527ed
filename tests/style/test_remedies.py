"""Every error says what to do next."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.style.tree import ROOT, python_files

VERBS = frozenset(
    """
    add allow ask call change check choose close convert copy correct create delete did do download drop empty end
    export fix free give go increase install keep leave let list load look lower make mount move name open pass pick
    point put raise read reduce remove rename repair replace report restore resume retry run save say see select send
    set shorten show skip split start stop store switch take train try turn unset update upgrade use wait write
    """.split()
)  # "did" is for "did you mean …?"; add a verb when a remedy needs one


def remedies(source: str) -> Iterator[tuple[int, str | None]]:
    """Line and text of each remedy in a module; the text is None where it is not written on the spot."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                if keyword.arg == "remedy":
                    for value in _alternatives(keyword.value):
                        yield node.lineno, _text(value)


def _alternatives(node: ast.expr) -> list[ast.expr]:
    return [node.body, node.orelse] if isinstance(node, ast.IfExp) else [node]


def _text(node: ast.expr) -> str | None:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)
            return None if text.startswith("…") else text  # opens with a value: nothing to read here
        case ast.BinOp(left=left, op=ast.Add()):
            return _text(left)
    return None


def instructs(text: str) -> bool:
    """True for a text that opens with what to do, or with a condition and then what to do."""
    opening = text.strip().lower()
    if opening.startswith(("if ", "to ", "on ", "with ")):
        opening = opening.partition(", ")[2]
    return opening.partition(" ")[0].strip("`,;:") in VERBS


@pytest.mark.parametrize("path", python_files("src"), ids=lambda path: str(path.relative_to(ROOT)))
def test_remedies_are_instructions(path) -> None:
    for line, text in remedies(path.read_text(encoding="utf-8")):
        if text is not None:
            assert instructs(text), f"{path.name}:{line}: start with what to do (a verb of VERBS), not {text!r}"


@pytest.mark.parametrize("text", ["", "   ", "the disk is full", "too many workers", "if the disk is full"])
def test_what_is_no_instruction(text: str) -> None:
    assert not instructs(text)


def test_remedies_are_found_where_they_are() -> None:
    source = 'raise E("a", remedy="use b")\nraise E("a", remedy=f"use {c}" if d else "")\nraise E("a", remedy=text)'
    assert list(remedies(source)) == [(1, "use b"), (2, "use …"), (2, ""), (3, None)]

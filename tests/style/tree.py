"""The files that the style tests read."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT_SUFFIXES = {"", ".css", ".html", ".js", ".json", ".md", ".py", ".toml", ".txt", ".yaml", ".yml"}


def python_files(folder: str) -> list[Path]:
    """Every Python file under a top folder of the repository, sorted."""
    return sorted((ROOT / folder).rglob("*.py"))


def text_files() -> list[Path]:
    """Every text file that is written by hand, sorted."""
    folders = [ROOT / name for name in (".ci", "bench", "deploy", "docs", "src", "tests")]
    nested = [path for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts]
    top = [ROOT / name for name in ("CHANGELOG.md", "Makefile", "README.md", "pyproject.toml")]
    return sorted(path for path in (*nested, *top) if path.is_file() and path.suffix in TEXT_SUFFIXES)

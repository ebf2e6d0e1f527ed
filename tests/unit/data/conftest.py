"""Fixtures of the tests of data."""

from __future__ import annotations

from tests.faults.conftest import quick_path

__all__ = ["quick_path"]

"""Synthetic bare boards with the six classic defects, as an Ultralytics data set: no download, exact truth."""

from steadyolo.data.boards.dataset import write_boards
from steadyolo.data.boards.defect import DEFECTS

__all__ = ["DEFECTS", "write_boards"]

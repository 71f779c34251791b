"""The figures of a stage in two files: quality in one, all other figures in the other."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from gptmill.files import read_object, write_json

METRICS = "metrics.json"
"""Figures of quality, which `dvc metrics` shows."""
DETAILS = "details.json"
"""Counts, sizes, bounds of intervals and baselines."""


def write_figures(folder: Path, figures: Mapping[str, Any], *, quality: Collection[str]) -> None:
    """Write figures in two files; a stage without a figure of quality writes the details alone."""
    if quality:
        write_json(folder / METRICS, {k: v for k, v in figures.items() if k in quality})
    write_json(folder / DETAILS, {k: v for k, v in figures.items() if k not in quality})


def read_figures(folder: Path) -> dict[str, Any]:
    """Return the figures in both files of a folder; empty without a file.

    Outputs of earlier versions hold all figures in metrics.json.
    """
    paths = [path for name in (METRICS, DETAILS) if (path := folder / name).exists()]
    return {name: value for path in paths for name, value in read_object(path).items()}

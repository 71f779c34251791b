"""Training curves of one or two sides in one plot, as SVG for an HTML page."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from gptmill.comparing.side import Side

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curves = tuple[pd.DataFrame, pd.DataFrame | None]
TRAINED = ("pretrain", "classify", "lora", "instruct")
COLOURS = {"A ": "#d9822b", "B ": "#3b82c4", "": "#3b82c4"}
"""Colours that can be read on a light and on a dark page, by the start of a label."""
INK = "#010203"
"""Replaced by the page's text colour."""
SMOOTHED = 50
"""The training loss is a mean of a fiftieth of the steps."""


def training_curves(*sides: Side) -> dict[str, str]:
    """Return an SVG for each stage of which a side has a training.csv."""
    labels = [f"{side.letter} " if len(sides) > 1 else "" for side in sides]
    drawn = {}
    for stage in TRAINED:
        tables = {
            label: _read(side.folder / stage)
            for label, side in zip(labels, sides, strict=True)
            if side.has(f"{stage}/training.csv")
        }
        if tables:
            drawn[stage] = _svg(tables)
    return drawn


def _read(folder: Path) -> Curves:
    """Return the losses of steps and of evaluations; earlier versions have a single table."""
    steps = _table(folder / "training.csv", ("step", "train_loss"))
    path = folder / "evaluations.csv"
    if path.exists():
        return steps, _table(path, ("step", "val_loss"))
    return steps, steps.dropna(subset="val_loss") if "val_loss" in steps else None


def _table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    table = pd.read_csv(path)
    absent = set(columns) - set(table.columns)
    if absent:
        raise ValueError(f"{path} has no column {', '.join(sorted(absent))}")
    return table


def _svg(tables: dict[str, Curves]) -> str:
    """Return the losses over steps as SVG without ids that vary between two runs."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings: dict[Any, str] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "gptmill",
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=(6, 3.2), layout="constrained")
        axes = figure.subplots()
        for label, (steps, evaluations) in tables.items():
            _draw(axes, label, steps, evaluations)
        axes.set_xlabel("step")
        axes.set_ylabel("loss, nats")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def _draw(axes: "Axes", label: str, steps: pd.DataFrame, evaluations: pd.DataFrame | None) -> None:
    colour, style = COLOURS[label], "--" if label == "A " else "-"
    smooth = steps["train_loss"].rolling(max(1, len(steps) // SMOOTHED), min_periods=1).mean()
    axes.plot(steps["step"], smooth, style, color=colour, linewidth=1, label=f"{label}training")
    if evaluations is not None:
        axes.plot(
            evaluations["step"],
            evaluations["val_loss"],
            style,
            color=colour,
            marker="o",
            linewidth=2,
            label=f"{label}validation",
        )

"""Figures of training curves and of the results of `evaluate`.

The figures go to MLflow; the plotted numbers are artifacts.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _figure(width: float, height: float) -> "Figure":
    """Return an empty figure, of a size in inches.

    matplotlib is imported here, and pandas where tables are made: most processes that import this
    module draw nothing, or only after training.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def losses(table: "pd.DataFrame") -> "Figure":
    """Plot the loss of each language model as a bar."""
    figure = _figure(6, 2.5)
    axes = figure.subplots()
    bars = axes.barh(table["model"], table["loss"])
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("validation loss, nats per token (less is better)")
    return figure


def confusion_matrices(tables: "Mapping[str, pd.DataFrame]") -> "Figure":
    """Plot a confusion matrix for each model in a separate panel."""
    from pandas import crosstab

    figure = _figure(3.2 * len(tables), 3.4)
    panels = figure.subplots(1, len(tables), squeeze=False)[0]
    for axes, (model, table) in zip(panels, tables.items(), strict=True):
        names = sorted({*table["actual"], *table["predicted"]})
        counts = crosstab(table["actual"], table["predicted"])
        _matrix(axes, counts.reindex(index=names, columns=names, fill_value=0))
        axes.set_title(model.replace("_", " "))
    return figure


def _matrix(axes: "Axes", counts: "pd.DataFrame") -> None:
    shares = counts.div(counts.sum(axis=1).clip(lower=1), axis=0).to_numpy()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    positions = np.arange(len(counts))
    axes.set_xticks(positions, counts.columns)
    axes.set_yticks(positions, counts.index)
    axes.set_xlabel("predicted")
    axes.set_ylabel("actual")
    for (row, column), count in np.ndenumerate(counts.to_numpy()):
        dark = shares[row, column] > 0.5
        axes.text(column, row, count, ha="center", va="center", color="white" if dark else "black")


def roc(curves: "Mapping[str, pd.DataFrame]", *, positive: str) -> "Figure":
    """Plot the ROC curves of all models."""
    figure = _figure(4.5, 4)
    axes = figure.subplots()
    for model, curve in curves.items():
        axes.plot(
            curve["false_positive_rate"], curve["true_positive_rate"], label=model.replace("_", " ")
        )
    axes.set_xlabel(f"share of non-{positive} rows predicted as {positive}")
    axes.set_ylabel(f"share of {positive} rows predicted as {positive}")
    axes.legend(loc="lower right")
    return figure


def right_answers(table: "pd.DataFrame") -> "Figure":
    """Plot the shares of right answers by kind of question, with intervals.

    Bars of the model before fine-tuning and of the most frequent answer stand beside them.
    """
    figure = _figure(7, 0.6 + 0.6 * len(table))
    axes = figure.subplots()
    positions = np.arange(len(table))
    for offset, column, label in (
        (-0.27, "right", "assistant"),
        (0, "before_right", "before fine-tuning"),
        (0.27, "baseline_right", "most frequent answer"),
    ):
        rates = table[column].to_numpy()
        below = rates - table[f"{column}_low"].to_numpy()
        above = table[f"{column}_high"].to_numpy() - rates
        errors = np.maximum(np.stack([below, above]), 0)  # at 0 and 1 rounding leaves -1e-17
        axes.barh(positions + offset, rates, height=0.25, xerr=errors, label=label, capsize=2)
    axes.set_yticks(positions, table["kind"])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of right answers, with 95 % interval")
    axes.legend()
    return figure


def curves(steps: "pd.DataFrame", evaluations: "pd.DataFrame") -> "Figure":
    """Plot losses over steps, and the accuracy beside them if measured."""
    names = ["loss", "accuracy"] if "val_accuracy" in evaluations else ["loss"]
    figure = _figure(6 * len(names), 4)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for table, column in ((steps, f"train_{name}"), (evaluations, f"val_{name}")):
            if column in table:
                axes.plot(table["step"], table[column], label=column.replace("_", " "))
        axes.set_xlabel("step")
        axes.set_ylabel(name)
        axes.legend()
    return figure


def line(table: "pd.DataFrame", column: str) -> "Figure":
    """Plot a column over steps."""
    figure = _figure(6, 4)
    axes = figure.subplots()
    axes.plot(table["step"], table[column])
    axes.set_xlabel("step")
    axes.set_ylabel(column.replace("_", " "))
    return figure

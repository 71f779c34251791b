"""What the stages that train report while they do: each step, the table of them, its curves."""

from collections.abc import Iterable

import pandas as pd
from matplotlib.figure import Figure

from gptmill.files import write_csv
from gptmill.training import Step
from tasks._stage import Run


def follow(run: Run, steps: Iterable[Step]) -> pd.DataFrame:
    """Train to the end, reporting each step; write training.csv and return it as a table."""
    rows: list[dict[str, float]] = []
    for step in steps:
        figures = {
            "train/loss": step.loss,
            "learning_rate": step.learning_rate,
            "grad_norm": step.grad_norm,
            **(step.evaluation or {}),
        }
        run.step(step.step, step.steps, figures, tokens_per_second=step.tokens_per_second)
        rows.append({"step": step.step, **{n.replace("/", "_"): v for n, v in figures.items()}})
    table = pd.DataFrame(rows)
    write_csv(run.out / "training.csv", table)
    run.figure("training", curves(table))
    return table


def curves(table: pd.DataFrame) -> Figure:
    """Plot the losses over steps and, where it was measured, the accuracy beside them."""
    names = ["loss", "accuracy"] if "val_accuracy" in table else ["loss"]
    figure = Figure(figsize=(6 * len(names), 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for column in (f"train_{name}", f"val_{name}"):
            if column in table:
                measured = table[["step", column]].dropna()
                axes.plot(measured["step"], measured[column], label=column.replace("_", " "))
        axes.set_xlabel("step")
        axes.set_ylabel(name)
        axes.legend()
    return figure

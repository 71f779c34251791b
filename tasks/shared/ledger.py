"""The data of a training step, and the first step with different data in two trainings."""

from pathlib import Path
from typing import Any

import pandas as pd

from tasks.frame.run import Inputs
from tasks.frame.stage import load
from tasks.project.graph import stages
from tasks.shared.training import TrainingSection

LedgerRow = dict[str, Any]


def trained() -> list[str]:
    """Return the stages with a training loop."""
    return [name for name in stages() if issubclass(load(name).section, TrainingSection)]


def rows(stage: str, step: int, outputs: Path) -> list[LedgerRow]:
    """Return the rows of a step of a finished training.

    Data are a function of the batch number, so training.csv holds the number alone. Raises
    ValueError for a step beyond the training's end.
    """
    table = steps(outputs)
    if not 1 <= step <= len(table):
        raise ValueError(f"{stage} had {len(table):,} steps; given: step {step}")
    params = load(stage).params()
    rows: list[LedgerRow] = params.describe_batch(
        Inputs(stage), int(table["batch_number"].iloc[step - 1])
    )
    return rows


def steps(outputs: Path) -> pd.DataFrame:
    """Return the table of steps; raise ValueError for a missing training.csv."""
    path = outputs / "training.csv"
    if not path.exists():
        raise ValueError(f"{path} is not there: name the output folder of a stage that trained")
    return pd.read_csv(path, dtype={"batch": str})


def compare(ours: Path, theirs: Path) -> str:
    """Describe up to which step two trainings read equal data, by their batch digests."""
    one, other = steps(ours)["batch"], steps(theirs)["batch"]
    together = min(len(one), len(other))
    differ = one[:together].to_numpy() != other[:together].to_numpy()
    if not differ.any():
        longer = "" if len(one) == len(other) else f"; they have {len(one):,} and {len(other):,}"
        return f"the same data in all {together:,} steps{longer}"
    first = int(differ.argmax())
    return (
        f"the same data up to step {first:,}; step {first + 1:,} saw batch {one[first]} in {ours} "
        f"and {other[first]} in {theirs}; {int(differ.sum()):,} of {together:,} steps differ"
    )

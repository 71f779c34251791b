"""Which documents and rows a training step saw, and where two trainings part."""

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
    """Return what step `step` of a finished training read, a row each.

    The data are what they were a function of, so nothing has to be kept but the batch's number.
    Raises ValueError where the training had no such step.
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
    """Return a training's table of steps. Raises ValueError where there is none."""
    path = outputs / "training.csv"
    if not path.exists():
        raise ValueError(f"{path} is not there: name the output folder of a stage that trained")
    return pd.read_csv(path, dtype={"batch": str})


def compare(ours: Path, theirs: Path) -> str:
    """Say up to which step two trainings saw the same data, by the digests of their batches."""
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

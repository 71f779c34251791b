"""Figures of answers by kind, and paired differences of two models.

A figure is the ratio of two columns' sums: passed / checked, nats / tokens. Intervals are a seeded
percentile bootstrap over the rows; a difference scores both models on the same resamples.

Letters: N rows, R resamples.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from gptmill.evaluation.estimates import Estimate, bootstrap

Floats = npt.NDArray[np.float64]
Scores = Mapping[str, pd.DataFrame]
"""The scored answers of each model: the same rows in the same order, with a column `kind`."""


class Figure(NamedTuple):
    """A ratio of two columns' sums."""

    over: str
    under: str
    less_is_better: bool = False


def by_kind(scores: Scores) -> Iterator[tuple[str, dict[str, pd.DataFrame]]]:
    """Yield every kind, sorted, with the rows of each model; the last kind is "all"."""
    kinds = next(iter(scores.values()))["kind"]
    for kind in sorted(set(kinds)):
        yield str(kind), {model: rows[rows["kind"] == kind] for model, rows in scores.items()}
    yield "all", dict(scores)


def compare(
    scores: Scores,
    pair: tuple[str, str],
    figures: Mapping[str, Figure],
    *,
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """Return the differences of a pair of models, first - second, by kind.

    `NAME_worse` is true where the whole interval lies on the side on which the first model is
    worse. A kind without a value (0 / 0) has empty cells.
    """
    table = []
    for kind, parts in by_kind(scores):
        rows = len(parts[pair[0]])
        draws = resample(rows, resamples, seed)
        row: dict[str, str | float] = {"kind": kind, "rows": rows}
        for name, figure in figures.items():
            first, second = (ratio(parts[model], figure, draws) for model in pair)
            difference = bootstrap(first - second)
            worse = difference.low > 0 if figure.less_is_better else difference.high < 0
            row |= {**columns(name, difference), f"{name}_worse": worse}
        table.append(row)
    return pd.DataFrame(table)


def columns(name: str, estimate: Estimate) -> dict[str, float]:
    """Return an estimate as three columns."""
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def resample(rows: int, resamples: int, seed: int) -> Floats:
    """Return how often each row counts: once, then in each resample, (1 + R, N)."""
    drawn = np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=resamples)
    return np.vstack([np.ones((1, rows)), drawn])


def ratio(rows: pd.DataFrame, figure: Figure, draws: Floats) -> Floats:
    """Return a figure in each resample, (1 + R,); NaN for 0 / 0."""
    over, under = (draws @ rows[name].to_numpy(np.float64) for name in figure[:2])
    values: Floats = over / np.where(under > 0, under, np.nan)
    return values

"""Significance of paired differences.

McNemar's exact test (1947, https://doi.org/10.1007/BF02295996) for shares of right rows, the
percentile bootstrap over rows for other figures, Holm's correction (1979) over all figures.

Letters: N rows, R resamples.
"""

from collections.abc import Callable, Sequence
from math import comb

import numpy as np
import numpy.typing as npt

from gptmill.evaluation.paired import resample

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

RESAMPLES = 10_000
AT_ONCE = 1_000
"""Resamples held in memory together."""
LEVEL = 0.05
"""The highest corrected p value of a significant difference."""


def mcnemar(first: Flags, second: Flags) -> float:
    """Return the two-sided p value of two models' right rows, (N,) each.

    Only the rows that one model alone has right count; without a difference each of these rows
    falls to either model with probability 1/2.
    """
    lost, won = int((first & ~second).sum()), int((~first & second).sum())
    flipped = lost + won
    tail: int = sum(comb(flipped, k) for k in range(min(lost, won) + 1))
    return min(1.0, tail / (1 << flipped) * 2)


def bootstrap_p(differences: Floats) -> float:
    """Return the two-sided p value of a difference and its resamples, (1 + R,).

    Twice the smaller share of resamples on either side of 0, with one resample added, so that the
    p value is never 0.
    """
    drawn = differences[1:][np.isfinite(differences[1:])]
    fewer = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(1.0, 2 * (fewer + 1) / (len(drawn) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's corrected p values, in the order of the p values."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, (len(p_values) - rank) * p_values[place])
        corrected[place] = min(1.0, largest)
    return corrected


def on_resamples(measure: Callable[[Floats], Floats], rows: int) -> Floats:
    """Return a measure on the rows themselves and on R resamples of the rows.

    `measure` takes weights of the rows, (1 + R, N), and returns values (..., 1 + R).
    """
    parts = [measure(resample(rows, AT_ONCE, seed)) for seed in range(RESAMPLES // AT_ONCE)]
    return np.concatenate([parts[0], *(part[..., 1:] for part in parts[1:])], axis=-1)

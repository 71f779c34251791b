"""Figures with 95 % confidence intervals.

A mean has the normal interval of its standard error. A share of right answers has Wilson's interval
(1927, https://doi.org/10.1080/01621459.1927.10502953), which stays within 0 and 1 on few rows.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A figure with a 95 % confidence interval."""

    value: float
    low: float
    high: float


def wilson(right: int, total: int) -> Estimate:
    """Return right/total with Wilson's 95 % interval."""
    assert 0 <= right <= total, f"{right} right of {total}"
    assert total > 0, "no rows to score"
    share = right / total
    spread = Z_95**2 / total
    middle = (share + spread / 2) / (1 + spread)
    half = Z_95 * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half))


def mean(values: npt.NDArray[np.float64]) -> Estimate:
    """Return the mean of values (N,) with the normal 95 % interval."""
    assert len(values), "no values"
    centre = float(values.mean())
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    half = Z_95 * spread / math.sqrt(len(values))
    return Estimate(centre, centre - half, centre + half)


def bootstrap(values: npt.NDArray[np.float64]) -> Estimate:
    """Return an estimate with a percentile bootstrap interval.

    `values` has the value on the rows themselves first, followed by the values on resamples.
    Resamples without a value (NaN) are left out.
    """
    drawn = values[1:][np.isfinite(values[1:])]
    low, high = np.quantile(drawn if len(drawn) else values[:1], [0.025, 0.975])
    return Estimate(float(values[0]), float(low), float(high))

"""Intervals against published values."""

import numpy as np
import pytest
from scipy import stats

from gptmill.evaluation.estimates import mean, wilson


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17: 857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_equals_published_values(
    right: int, total: int, low: float, high: float
) -> None:
    found = wilson(right, total)
    assert found.value == right / total
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)


def test_mean_interval_equals_scipys() -> None:
    values = np.random.default_rng(1).exponential(size=50)
    found = mean(values)
    expected = stats.norm.interval(0.95, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)
    assert mean(np.array([2.0])).low == 2

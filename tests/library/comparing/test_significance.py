"""Paired tests against scipy, and against R for Holm's correction."""

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_rel

from gptmill.comparing.significance import bootstrap_p, holm, mcnemar, on_resamples


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (5, 0), (1, 9), (12, 30), (7, 7), (400, 500)])
def test_mcnemar_is_scipy_s_binomial_test(lost: int, won: int) -> None:
    first = np.array([True] * lost + [False] * won + [True] * 90 + [False] * 10)
    second = np.array([False] * lost + [True] * won + [True] * 90 + [False] * 10)
    reference = binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert mcnemar(first, second) == pytest.approx(reference)


@pytest.mark.parametrize(
    ("p_values", "corrected"),  # p.adjust(p, "holm") in R
    [
        ([0.01, 0.02, 0.03, 0.04, 0.05], [0.05, 0.08, 0.09, 0.09, 0.09]),
        ([0.04, 0.001, 0.5, 0.03], [0.09, 0.004, 0.5, 0.09]),
        ([0.9, 0.8], [1.0, 1.0]),
        ([], []),
    ],
)
def test_holm_is_r_s(p_values: list[float], corrected: list[float]) -> None:
    assert holm(p_values) == pytest.approx(corrected)


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.2, 0.5])
def test_the_bootstrap_s_p_value_of_a_mean_is_near_the_paired_t_test_s(shift: float) -> None:
    rng = np.random.default_rng(1)
    first = rng.normal(size=200)
    second = first + rng.normal(loc=shift, size=200)
    drawn = on_resamples(lambda weights: weights @ (second - first) / len(first), len(first))
    assert bootstrap_p(drawn) == pytest.approx(ttest_rel(first, second).pvalue, abs=0.02)
    assert drawn[0] == pytest.approx((second - first).mean())


def test_equal_values_have_the_p_value_1() -> None:
    assert bootstrap_p(np.zeros(1001)) == 1
    assert bootstrap_p(np.full(1001, np.nan)) == 1

"""Power of `make compare`: how often planted differences of accuracy and F1 are found.

Two classifiers are simulated on the same test rows: both find the same rows difficult, each has
mistakes of its own, and B has a planted difference of accuracy. A difference counts as found if
the p value after Holm's correction over the figures of a comparison is below 0.05 (the other
figures are taken as equal). The first row, without a planted difference, shows false verdicts.
"""

import sys

import numpy as np

from gptmill.comparing.significance import LEVEL, Flags, bootstrap_p, holm, mcnemar
from gptmill.evaluation.paired import resample

POINTS = (0, 1, 2, 3, 5, 8)
TEST_ROWS = (200, 1000)
FIGURES = 11  # of a comparison on the default data
ACCURACY, OWN_MISTAKES, RARE = 0.95, 0.01, 0.13
RESAMPLES = 2000


def simulate(rows: int, loss: float, rng: np.random.Generator) -> tuple[Flags, Flags, Flags]:
    """Return the actual rare rows, and the right rows of A and of B."""
    shared = rng.random(rows) < ACCURACY + OWN_MISTAKES
    right = [shared & (rng.random(rows) >= OWN_MISTAKES / ACCURACY) for _ in range(2)]
    right[1] &= rng.random(rows) >= loss / ACCURACY
    return rng.random(rows) < RARE, right[0], right[1]


def found(rows: int, loss: float, rng: np.random.Generator) -> tuple[bool, bool]:
    """Return whether the difference is found in accuracy, and in F1 of the rare class."""
    rare, *right = simulate(rows, loss, rng)
    draws = resample(rows, RESAMPLES, int(rng.integers(1 << 30)))
    f1 = []
    for flags in right:
        hits, marked = rare & flags, (rare & flags) | (~rare & ~flags)
        f1.append(2 * (draws @ hits) / np.maximum(draws @ (marked.astype(int) + rare), 1))
    rest = [1.0] * (FIGURES - 2)
    corrected = holm([mcnemar(*right), bootstrap_p(f1[1] - f1[0]), *rest])
    return corrected[0] < LEVEL, corrected[1] < LEVEL


def main(repeats: int) -> None:
    """Print the table."""
    print(
        f"{repeats} simulations a row; accuracy {ACCURACY:.0%}, rare class {RARE:.0%} of the rows"
    )
    print("rows   planted   found in accuracy   found in F1")
    for rows in TEST_ROWS:
        for points in POINTS:
            rng = np.random.default_rng(points)
            hits = np.mean([found(rows, points / 100, rng) for _ in range(repeats)], axis=0)
            name = f"{points} point" if points == 1 else f"{points} points"
            print(f"{rows:5,}  {name:8}  {hits[0]:17.0%}  {hits[1]:12.0%}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)

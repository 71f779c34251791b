"""Count how often the gate moves the champion: `python benchmarks/gate.py [predictions.csv ...]`.

The files are predictions of classifiers that differ in the seed alone, on the same test rows (text,
label, predicted). Of all ordered pairs (champion, candidate) the script counts the promotions under
`better` and `not_worse`, then the refusals of candidates with a planted loss of 5 points of
accuracy. Without files, groups of 20 classifiers are simulated as in power.py.
"""

import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.power import ACCURACY, OWN_MISTAKES, RARE
from gptmill.comparing.significance import Flags, Floats, on_resamples
from gptmill.evaluation.estimates import bootstrap

SEEDS, GROUPS, ROWS = 20, 3, 1000
LOSS = 0.05
MARGIN = 0.01  # of `not_worse`, as in params.yaml
RULES = {"better": 0.0, "not_worse": -MARGIN}
FIGURES = ("accuracy", "F1")


def simulated(rng: np.random.Generator) -> tuple[Flags, npt.NDArray[np.bool_]]:
    """Return the rare rows (N,) and the right rows of each classifier (models, N)."""
    shared = rng.random(ROWS) < ACCURACY + OWN_MISTAKES
    own = rng.random((SEEDS, ROWS)) >= OWN_MISTAKES / ACCURACY
    return rng.random(ROWS) < RARE, shared & own


def read(paths: list[str]) -> tuple[Flags, npt.NDArray[np.bool_]]:
    """Return the rare rows and the right rows of each file; raise ValueError for other rows."""
    tables = [pd.read_csv(path, dtype=str, keep_default_na=False) for path in paths]
    for path, table in zip(paths, tables, strict=True):
        missing = {"text", "label", "predicted"} - {*table.columns}
        if missing:
            raise ValueError(f"{path} has no column {', '.join(sorted(missing))}")
        if not table[["text", "label"]].equals(tables[0][["text", "label"]]):
            raise ValueError(f"{path} has other test rows than {paths[0]}")
    labels = tables[0]["label"]
    rare = (labels == labels.value_counts().sort_index(kind="stable").idxmin()).to_numpy()
    right = [(table["predicted"] == table["label"]).to_numpy() for table in tables]
    return rare, np.stack(right)


def planted(right: npt.NDArray[np.bool_], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Return the right rows of each classifier after a loss of 5 points of accuracy."""
    changed = right.copy()
    for row in changed:
        row[rng.choice(np.flatnonzero(row), round(LOSS * len(row)), replace=False)] = False
    return changed


def measured(rare: Flags, right: npt.NDArray[np.bool_]) -> Floats:
    """Return accuracy and F1 of two classes, on rows and resamples: (2, models, 1 + R)."""
    hits = rare & right
    marked = rare.astype(float) + (hits | (~rare & ~right))

    def measure(weights: Floats) -> Floats:
        right_share = right.astype(float) @ weights.T / weights.sum(axis=1)
        f1 = 2 * hits.astype(float) @ weights.T / np.maximum(marked @ weights.T, 1)
        return np.stack([right_share, f1])

    return on_resamples(measure, len(rare))


def promoted(champions: Floats, candidates: Floats) -> dict[str, list[bool]]:
    """Return each ordered pair's promotion by rule; values are (models, 1 + R)."""
    lows = [
        bootstrap(candidates[b] - champions[a]).low
        for a, b in permutations(range(len(champions)), 2)
    ]
    return {rule: [low > least for low in lows] for rule, least in RULES.items()}


def main(paths: list[str]) -> None:
    """Print the table."""
    rng = np.random.default_rng(1)
    groups = [read(paths)] if paths else [simulated(rng) for _ in range(GROUPS)]
    counts: dict[tuple[str, str, str], list[bool]] = {}
    for rare, right in groups:
        same, worse = (measured(rare, rows) for rows in (right, planted(right, rng)))
        for place, figure in enumerate(FIGURES):
            for kind, candidates in (("promoted", same), ("refused after the loss", worse)):
                for rule, moves in promoted(same[place], candidates[place]).items():
                    found = moves if kind == "promoted" else [not move for move in moves]
                    counts.setdefault((figure, rule, kind), []).extend(found)
    rare, right = groups[0]
    disagreement = np.mean(
        [np.mean(right[a] != right[b]) for a, b in permutations(range(len(right)), 2)]
    )
    print(f"{len(groups)} groups of {len(right)} classifiers, {len(rare):,} test rows", end="; ")
    print(f"accuracy {right.mean():.1%}, one of two right on {disagreement:.1%} of the rows")
    print("figure     rule        ordered pairs")
    for (figure, rule, kind), moves in counts.items():
        print(
            f"{figure:9}  {rule:10}  {sum(moves):,} of {len(moves):,} {kind} ({np.mean(moves):.1%})"
        )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.exit(str(Path(sys.argv[0]).name) + f": {error}")

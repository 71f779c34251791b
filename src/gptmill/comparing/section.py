"""The results of a comparison: figures with a verdict, and examples, by task."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from gptmill.comparing.significance import LEVEL, Flags, Floats, bootstrap_p, mcnemar
from gptmill.evaluation.estimates import Estimate, bootstrap, wilson

LEAST_ROWS = 30
"""Fewer common test rows are no ground for a verdict."""

Change = Literal["lost", "won", "both wrong", "both right", "unchecked"]
CHANGES: tuple[Change, ...] = ("lost", "won", "both wrong", "unchecked", "both right")
"""The order of examples."""


class MissingError(ValueError):
    """The reason why a task cannot be compared."""


@dataclass(frozen=True)
class Unit:
    """The unit in which a figure's difference is told."""

    name: str
    scale: float
    digits: int

    def show(self, value: float, *, sign: bool = False) -> str:
        """Return a value as text, without a minus before 0."""
        number = round(value * self.scale, self.digits) + 0.0
        return f"{number:{'+' if sign else ''}.{self.digits}f}"


POINTS = Unit("points", 100, 1)
BITS = Unit("bits per byte", 1, 3)
NATS = Unit("nats per reference", 1, 2)


@dataclass(frozen=True)
class Figure:
    """A figure of both sides on the same rows, and the difference B - A."""

    name: str
    first: Estimate
    second: Estimate
    difference: Estimate
    test: str
    p: float
    corrected: float = 1.0
    """The p value after Holm's correction over all figures of the comparison."""
    unit: Unit = POINTS
    less_is_better: bool = False

    @property
    def gain(self) -> Estimate:
        """Return the difference with the sign of an improvement."""
        if not self.less_is_better:
            return self.difference
        value, low, high = self.difference.value, self.difference.low, self.difference.high
        return Estimate(-value, -high, -low)

    @property
    def verdict(self) -> Literal["better", "worse", "same"]:
        """Return whether B is better or worse than A, or not significantly different."""
        if self.corrected >= LEVEL or self.gain.value == 0:
            return "same"
        return "better" if self.gain.value > 0 else "worse"

    @property
    def sentence(self) -> str:
        """Return the verdict in words."""
        if self.verdict == "same":
            beside = self.difference.low > 0 or self.difference.high < 0
            ending = " after the correction" if beside else ""
            return f"no significant difference{ending} ({self._shown(self.difference, sign=True)})"
        size = self.gain
        if self.verdict == "worse":
            size = Estimate(-size.value, -size.high, -size.low)
        return f"B is {self.verdict} on {self.name} by {self._shown(size)}"

    def _shown(self, size: Estimate, *, sign: bool = False) -> str:
        """Return a difference in its unit, with the interval."""
        value, low, high = (
            self.unit.show(number, sign=sign) for number in (size.value, size.low, size.high)
        )
        return f"{value} {self.unit.name}, {low} to {high}"


@dataclass(frozen=True)
class Example:
    """A row with the answers of both sides."""

    change: Change
    kind: str
    question: str
    expected: str
    first: str
    second: str


@dataclass(frozen=True)
class Section:
    """The comparison of one task."""

    name: str
    title: str
    rows: int = 0
    notes: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    confusions: Mapping[str, tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]] = field(
        default_factory=dict
    )
    """Class names and counts (actual rows, predicted columns) of each side."""
    examples: tuple[Example, ...] = ()
    missing: str = ""
    """The reason why there is no figure; empty where there are figures."""


def share(name: str, right: tuple[Flags, Flags], differences: Floats) -> Figure:
    """Compare the shares of both models' right rows, (N,) each, by McNemar's exact test.

    `differences` are those of the shares on the rows and their resamples, (1 + R,).
    """
    first, second = (wilson(int(flags.sum()), len(flags)) for flags in right)
    return Figure(name, first, second, bootstrap(differences), "McNemar", mcnemar(*right))


def measured(
    name: str, values: Floats, *, unit: Unit = POINTS, less_is_better: bool = False
) -> Figure:
    """Compare a figure of both models on the rows and their resamples, (2, 1 + R)."""
    first, second = values
    return Figure(
        name,
        bootstrap(first),
        bootstrap(second),
        bootstrap(second - first),
        "paired bootstrap",
        bootstrap_p(second - first),
        unit=unit,
        less_is_better=less_is_better,
    )


def change(first: bool | None, second: bool | None) -> Change:
    """Return how a row changed from A to B; None is an answer without a check."""
    if first is None or second is None:
        return "unchecked"
    if first == second:
        return "both right" if first else "both wrong"
    return "lost" if first else "won"

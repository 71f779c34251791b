"""The rule of a kind of model: primary metric, margin, thresholds."""

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

CLASSIFIER = {"accuracy": "accuracy", "f1": "F1", "auc": "ROC AUC"}
PRIMARY: dict[str, dict[str, tuple[str, str]]] = {
    "generator": {"bits_per_byte": ("pretrain", "bits per byte")},
    "classifier": {key: ("classify", name) for key, name in CLASSIFIER.items()},
    "classifier-lora": {key: ("lora", name) for key, name in CLASSIFIER.items()},
    "assistant": {
        "right_answers": ("exercises", "right answers"),
        "answers_token_f1": ("exercises", "token F1"),
        "passed_checks": ("general", "passed checks"),
        "token_f1": ("general", "token F1"),
        "loss": ("general", "loss"),
    },
}
"""The task and the figure of each primary metric, by kind of model."""
OPERATORS: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le}
THRESHOLD = re.compile(r"\s*(\w+)\s*(>=|<=)\s*(\S+)\s*")
FORM = (
    "a threshold is a figure of artifacts/evaluate (metrics.json or details.json), >= or <=, and a "
    "number or another figure, as in `classify_f1 >= 0.8`"
)


@dataclass(frozen=True)
class Rule:
    """The conditions for a new champion of one kind."""

    primary: str
    when: Literal["better", "not_worse"]
    margin: float
    """The tolerated loss of `not_worse`, in the unit of the primary metric."""
    thresholds: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check the values; a params file is a user's input."""
        if not 0 <= self.margin < math.inf:
            raise ValueError(f"margin is {self.margin} but must be 0 or more")
        for text in self.thresholds:
            if THRESHOLD.fullmatch(text) is None:
                raise ValueError(f"threshold `{text}` is not allowed: {FORM}")

    @property
    def least(self) -> float:
        """Return the value that the lower bound of the gain must exceed."""
        return -self.margin if self.when == "not_worse" else 0.0


def failed_thresholds(rule: Rule, figures: Mapping[str, object]) -> list[str]:
    """Return a reason for each threshold that the figures do not meet."""
    reasons = []
    for text in rule.thresholds:
        match = THRESHOLD.fullmatch(text)
        assert match is not None
        name, sign, bound = match.groups()
        value, limit = _number(figures.get(name)), _number(figures.get(bound, bound))
        if value is None or limit is None:
            absent = bound if value is not None else name
            reasons.append(f"{text}: the evaluation has no figure {absent}")
        elif not OPERATORS[sign](value, limit):
            against = f"{bound} {limit:.4g}" if bound in figures else f"{limit:.4g}"
            reasons.append(f"{name} is {value:.4g}, but must be {sign} {against}")
    return reasons


def _number(value: object) -> float | None:
    try:
        return float(str(value))
    except ValueError:
        return None

"""The gate: whether a new version of a model may become the champion of its kind.

A version must pass thresholds on the figures of the evaluation. Against an earlier version, the
95 % interval of the paired gain decides, on the test rows that both versions share.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gptmill.comparing.comparison import Comparison, compare_tasks
from gptmill.comparing.rule import PRIMARY, Rule, failed_thresholds
from gptmill.comparing.section import Figure, MissingError
from gptmill.comparing.side import Side


@dataclass(frozen=True)
class Decision:
    """The decision on a version, and the reasons in words."""

    promoted: bool
    verdict: Literal["first", "better", "worse", "same", "unknown"]
    """The version against its opponent, by the interval of the primary metric alone."""
    reasons: tuple[str, ...]
    gain: float = 0.0
    """The paired gain over the opponent."""
    comparison: Comparison | None = None
    """The whole comparison with the opponent, for a page."""


def judge_first(rule: Rule, figures: Mapping[str, object]) -> Decision:
    """Decide on a version without an opponent, by the thresholds alone."""
    failed = failed_thresholds(rule, figures)
    passed = (f"no champion before; thresholds passed: {', '.join(rule.thresholds) or 'none set'}",)
    return Decision(not failed, "first", tuple(failed) or passed)


def judge(
    rule: Rule,
    figures: Mapping[str, object],
    *,
    kind: str,
    opponent: Side,
    version: Side,
    device: str,
) -> Decision:
    """Decide on a version by the thresholds, and by the paired gain over the opponent."""
    failed = failed_thresholds(rule, figures)
    names = {task for task, _ in PRIMARY[kind].values()}
    comparison = compare_tasks(opponent, version, device=device, names=names)
    try:
        figure = _primary(rule, kind, comparison)
    except MissingError as error:
        reason = f"no comparison with {opponent.name}: {error}"
        return Decision(False, "unknown", (*failed, reason), comparison=comparison)
    gain = figure.gain
    verdict: Literal["better", "worse", "same"] = (
        "better" if gain.low > 0 else "worse" if gain.high < 0 else "same"
    )
    passed = gain.low > rule.least
    reason = _sentence(rule, figure, opponent.name, passed=passed)
    return Decision(passed and not failed, verdict, (*failed, reason), gain.value, comparison)


def _primary(rule: Rule, kind: str, comparison: Comparison) -> Figure:
    """Return the primary metric; raise MissingError where the sides lack the metric."""
    task, name = PRIMARY[kind][rule.primary]
    compared = next(section for section in comparison.sections if section.name == task)
    if compared.missing:
        raise MissingError(compared.missing)
    found = [figure for figure in compared.figures if figure.name.startswith(name)]
    if not found:
        raise MissingError(f"{name} was not measured: {'; '.join(compared.notes)}")
    return found[0]


def _sentence(rule: Rule, figure: Figure, opponent: str, *, passed: bool) -> str:
    show, gain = figure.unit.show, figure.gain
    size = " to ".join(show(bound, sign=True) for bound in (gain.low, gain.high))
    wanted = {
        "better": "better needs an interval above 0",
        "not_worse": f"not_worse needs an interval above {show(rule.least)}",
    }[rule.when]
    return (
        f"{figure.name} {show(figure.second.value)} against {show(figure.first.value)} of "
        f"{opponent}, a gain of {show(gain.value, sign=True)} {figure.unit.name} (95 %: {size}): "
        f"{wanted}, {'met' if passed else 'not met'}"
    )

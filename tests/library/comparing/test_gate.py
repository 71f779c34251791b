"""The gate's decisions on planted differences, with reasons, and mistakes in its rules."""

import re
from pathlib import Path

import pytest

from gptmill.comparing import significance
from gptmill.comparing.gate import judge, judge_first
from gptmill.comparing.rule import PRIMARY, Rule
from gptmill.comparing.side import Side
from gptmill.files import write_csv
from tests.library.comparing.planted import trained_rows, write_side

FIGURES = {"classify_f1": 0.9, "bag_of_words_f1": 0.8, "loss": 2.0}


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> Side:
    return write_side(tmp_path_factory.mktemp("side") / "champion", wrong=30)


@pytest.mark.parametrize(
    ("when", "wrong", "promoted", "verdict"),
    [
        ("better", 80, False, "worse"),
        ("better", 34, False, "worse"),
        ("better", 30, False, "same"),
        ("better", 25, True, "better"),
        ("not_worse", 80, False, "worse"),
        ("not_worse", 40, True, "worse"),
        ("not_worse", 30, True, "same"),
    ],
)
@pytest.mark.parametrize(
    ("kind", "primary"), [("classifier", "accuracy"), ("assistant", "passed_checks")]
)
def test_a_planted_difference_is_judged(
    champion: Side,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
    wrong: int,
    *,
    promoted: bool,
    verdict: str,
    kind: str,
    primary: str,
) -> None:
    monkeypatch.setattr(significance, "RESAMPLES", 1000)
    rule = Rule(primary, when, 0.03 if kind == "classifier" else 0.1, ("classify_f1 >= 0.8",))  # type: ignore[arg-type]
    version = write_side(tmp_path / "version", wrong=wrong)
    sides = {"opponent": champion, "version": version}
    decision = judge(rule, FIGURES, kind=kind, device="cpu", **sides)
    assert (decision.promoted, decision.verdict) == (promoted, verdict)
    assert decision.reasons[-1].endswith(", met" if promoted else ", not met")
    strict = Rule(primary, when, 0.1, ("classify_f1 >= 0.95",))  # type: ignore[arg-type]
    refused = judge(strict, FIGURES, kind=kind, device="cpu", **sides)
    assert not refused.promoted
    assert refused.reasons[0] == "classify_f1 is 0.9, but must be >= 0.95"


def test_versions_without_enough_common_rows_are_refused(champion: Side, tmp_path: Path) -> None:
    version = write_side(tmp_path / "version")
    seen = trained_rows(*(f"text {k}" for k in range(990)))
    write_csv(version.folder / "split/labelled/train.csv", seen)
    rule = Rule("f1", "better", 0.0, ())
    sides = {"opponent": champion, "version": version}
    decision = judge(rule, FIGURES, kind="classifier", device="cpu", **sides)
    assert (decision.promoted, decision.verdict) == (False, "unknown")
    assert "a verdict needs at least 30 rows" in decision.reasons[0]


@pytest.mark.parametrize(
    ("threshold", "reason"),
    [
        ("classify_f1 >= bag_of_words_f1", None),
        (
            "classify_f1 <= bag_of_words_f1",
            "classify_f1 is 0.9, but must be <= bag_of_words_f1 0.8",
        ),
        ("loss <= 2", None),
        ("loss>=2.5", "loss is 2, but must be >= 2.5"),
        ("los <= 2", "los <= 2: the evaluation has no figure los"),
        ("loss <= los", "loss <= los: the evaluation has no figure los"),
        ("loss <= nan", "loss is 2, but must be <= nan"),
    ],
)
def test_the_first_version_must_pass_the_thresholds(threshold: str, reason: str | None) -> None:
    decision = judge_first(Rule("f1", "better", 0.0, (threshold,)), FIGURES)
    assert decision.promoted == (reason is None)
    assert decision.reasons[0] == reason or reason is None


@pytest.mark.parametrize(
    ("margin", "threshold", "message"),
    [
        (-0.1, "loss <= 2", "margin is -0.1 but must be 0 or more"),
        (float("nan"), "loss <= 2", "margin is nan"),
        (0.1, "loss < 2", "threshold `loss < 2` is not allowed: a threshold is a figure"),
        (0.1, "2", "threshold `2` is not allowed"),
    ],
)
def test_a_mistake_in_a_rule_is_named(margin: float, threshold: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Rule("f1", "better", margin, (threshold,))


def test_every_primary_metric_is_a_figure_of_the_comparison(
    champion: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(significance, "RESAMPLES", 1000)
    for kind in ("classifier", "assistant"):
        for primary in PRIMARY[kind]:
            rule = Rule(primary, "better", 0.0, ())
            sides = {"opponent": champion, "version": champion}
            assert judge(rule, {}, kind=kind, device="cpu", **sides).verdict == "same", primary

"""Answers of an assistant, scored by kind of question beside the most frequent answer."""

from collections import Counter

import pandas as pd

from gptmill.evaluation.estimates import Estimate, wilson

EDGES = ".,;:!?\"'`()[]{}<>*_\u2018\u2019\u201c\u201d\u2026"  # and curly quotes, ellipsis


def normalise(text: str) -> list[str]:
    """Return a text's words without case and without punctuation at their edges.

    Answers that differ only in that, or in white space, count as the same. Signs that change
    an answer ("-5", "C++", "50%") stay.
    """
    words = (word.strip(EDGES) for word in text.casefold().split())
    return [word for word in words if word]


def exact_match(answer: str, expected: str) -> bool:
    """Say whether two answers have the same words in the same order."""
    return normalise(answer) == normalise(expected)


def token_f1(answer: str, expected: str) -> float:
    """Return the harmonic mean of the shares of words that two answers have in common.

    As in SQuAD (https://arxiv.org/abs/1606.05250), but with the articles kept.
    """
    given, wanted = Counter(normalise(answer)), Counter(normalise(expected))
    if not given or not wanted:
        return float(given == wanted)
    return 2 * (given & wanted).total() / (given.total() + wanted.total())


def most_frequent_answers(train: pd.DataFrame) -> dict[str, str]:
    """Return each kind's answer that occurs most often in the training part, as first written.

    Of several equally frequent answers the alphabetically first is taken.
    """
    found = {}
    for kind, rows in train.groupby("kind", sort=True):
        spelled = {" ".join(normalise(output)): output for output in reversed(list(rows["output"]))}
        counts = Counter(" ".join(normalise(output)) for output in rows["output"])
        found[str(kind)] = spelled[min(counts, key=lambda words: (-counts[words], words))]
    return found


def score_assistant(answers: pd.DataFrame, train: pd.DataFrame) -> pd.DataFrame:
    """Score answers by kind of question beside the answer most frequent for that kind.

    `answers` has the columns kind, output (what was asked for), answer, and before: the answer
    of the model that was not fine-tuned yet; `train` the columns kind and output. One row a
    kind, sorted, and a last one named "all". `beats` says that more answers are exact than the
    baseline's; `beats_interval` that their share also lies above the baseline's 95 % interval.
    """
    usual = most_frequent_answers(train)
    rows = answers.assign(baseline=answers["kind"].map(usual).fillna(""))
    kinds = [(str(kind), part) for kind, part in rows.groupby("kind", sort=True)]
    return pd.DataFrame([_score_kind(kind, part) for kind, part in [*kinds, ("all", rows)]])


def _score_kind(kind: str, rows: pd.DataFrame) -> dict[str, str | int | float | bool]:
    exact, f1 = _score_column(rows, "answer")
    before, before_f1 = _score_column(rows, "before")
    baseline, baseline_f1 = _score_column(rows, "baseline")
    return {
        "kind": kind,
        "rows": len(rows),
        "exact_match": exact.value,
        "exact_match_low": exact.low,
        "exact_match_high": exact.high,
        "token_f1": f1,
        "before_exact_match": before.value,
        "before_exact_match_low": before.low,
        "before_exact_match_high": before.high,
        "before_token_f1": before_f1,
        "baseline_exact_match": baseline.value,
        "baseline_exact_match_low": baseline.low,
        "baseline_exact_match_high": baseline.high,
        "baseline_token_f1": baseline_f1,
        "beats": exact.value > baseline.value,
        "beats_interval": exact.value > baseline.high,
    }


def _score_column(rows: pd.DataFrame, column: str) -> tuple[Estimate, float]:
    pairs = list(zip(rows[column], rows["output"], strict=True))
    right = sum(exact_match(answer, expected) for answer, expected in pairs)
    return wilson(right, len(pairs)), sum(token_f1(*pair) for pair in pairs) / len(pairs)

"""Assistant scores by kind of question, beside a baseline.

The baseline is the most frequent answer of each kind.
"""

from collections import Counter

import pandas as pd

from gptmill.evaluation.estimates import Estimate, wilson

EDGES = ".,;:!?\"'`()[]{}<>*_\u2018\u2019\u201c\u201d\u2026"  # and curly quotes, ellipsis


def normalise(text: str) -> list[str]:
    """Return a text's casefolded words, without punctuation at the edges.

    Answers that differ only in case, punctuation at the edges or white space count as equal. Signs
    that change an answer ("-5", "C++", "50%") stay.
    """
    words = (word.strip(EDGES) for word in text.casefold().split())
    return [word for word in words if word]


def exact_match(answer: str, expected: str) -> bool:
    """Return whether both answers have the same words in order."""
    return normalise(answer) == normalise(expected)


def token_f1(answer: str, expected: str) -> float:
    """Return the F1 score of the words of both answers.

    The harmonic mean of the shares of common words, as in SQuAD
    (https://arxiv.org/abs/1606.05250), but with the articles kept.
    """
    counts, expected_counts = Counter(normalise(answer)), Counter(normalise(expected))
    if not counts or not expected_counts:
        return float(counts == expected_counts)
    return 2 * (counts & expected_counts).total() / (counts.total() + expected_counts.total())


def most_frequent_answers(train: pd.DataFrame) -> dict[str, str]:
    """Return each kind's most frequent answer in the training part.

    The answer has the spelling of the first occurrence. Of several equally frequent answers, the
    alphabetically first is chosen.
    """
    answers = {}
    for kind, rows in train.groupby("kind", sort=True):
        spelled = {" ".join(normalise(output)): output for output in reversed(list(rows["output"]))}
        counts = Counter(" ".join(normalise(output)) for output in rows["output"])
        answers[str(kind)] = spelled[min(counts, key=lambda words: (-counts[words], words))]
    return answers


def score_assistant(answers: pd.DataFrame, train: pd.DataFrame) -> pd.DataFrame:
    """Score answers by kind of question, beside a baseline.

    The baseline is the most frequent answer of the kind. `answers` has the columns kind, output
    (the expected answer), answer, and before: the answer of the model before fine-tuning; `train`
    has the columns kind and output. Returns a row per kind, sorted, and a last row named "all".
    `beats` is true where more answers are exact than the baseline's; `beats_interval` where the
    share of exact answers also lies above the baseline's 95 % interval.
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

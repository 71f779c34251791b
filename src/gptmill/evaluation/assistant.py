"""Assistant scores by kind of question, beside a baseline.

The baseline is the most frequent answer of each kind.
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping

import pandas as pd

from gptmill.evaluation.estimates import Estimate, wilson
from gptmill.evaluation.overlap import Overlap, names, normalise, repetition
from gptmill.evaluation.paired import Figure, by_kind, columns

CLOSED = 5  # uses of an answer, on average, in the training part of a closed kind
COLUMNS = {"answer": "", "before": "before_", "baseline": "baseline_"}
"""The columns of answers, with the prefixes of their figures."""
STOPPED = "stopped"
ENDS = ("answer", "baseline")
EXERCISES = {"named": Figure("named", "short"), "token_f1": Figure("token_f1", "one")}
"""The figures in which the assistant is compared with its base."""
NAMED_WORDS = 3  # keys of at most this many words are searched in a sentence


def most_frequent_answers(train: pd.DataFrame) -> dict[str, str]:
    """Return each kind's most frequent answer in the training part.

    The answer has the spelling of the first occurrence. Of several equally frequent answers, the
    alphabetically first is chosen.
    """
    answers = {}
    for kind, rows in train.groupby("kind", sort=True):
        outputs = _expected(rows)
        spelled = {" ".join(normalise(output)): output for output in reversed(outputs)}
        counts = Counter(" ".join(normalise(output)) for output in outputs)
        answers[str(kind)] = spelled[min(counts, key=lambda words: (-counts[words], words))]
    return answers


def _expected(rows: pd.DataFrame) -> list[str]:
    """Return each row's key, or the output of a row without a key."""
    keys = rows["key"] if "key" in rows else [""] * len(rows)
    return [key or output for key, output in zip(keys, rows["output"], strict=True)]


def closed_answers(train: pd.DataFrame) -> dict[str, frozenset[str]]:
    """Return the answers of each closed kind, in lower case.

    A kind is closed if the training part uses each answer five times or more on average, as the
    word classes. Of an open kind, any number of answers may be right, and the set is empty.
    """
    answers = {}
    for kind, rows in train.groupby("kind", sort=True):
        distinct = frozenset(" ".join(normalise(output)) for output in _expected(rows))
        answers[str(kind)] = distinct if len(rows) >= CLOSED * len(distinct) else frozenset()
    return answers


def score_exercises(answers: pd.DataFrame, train: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the figures of every answer, by column of answers.

    `answers` has the columns kind, output (the expected answer), key (the words that a right answer
    names, empty for the output itself), answer, and before: the answer of the model before
    fine-tuning; `train` has the columns kind, output and key. The third column of
    answers is the baseline, the most frequent answer of the kind. The optional columns stopped and
    before_stopped tell whether the model ended an answer before the limit.
    """
    usual, closed = most_frequent_answers(train), closed_answers(train)
    rows = answers.assign(baseline=answers["kind"].map(usual).fillna(""))
    others = rows["kind"].map(lambda kind: closed.get(kind, frozenset()))
    scores = {}
    for column in COLUMNS:
        given = zip(rows[column], rows["output"], _expected(rows), others, strict=True)
        scores[column] = pd.DataFrame([_score_answer(*fields) for fields in given])
        flags = f"{COLUMNS[column]}{STOPPED}"
        scores[column][STOPPED] = rows[flags].to_numpy(float) if flags in rows else math.nan
        scores[column].insert(0, "kind", list(rows["kind"]))
    return scores


def _score_answer(
    answer: str, expected: str, key: str, others: Collection[str]
) -> dict[str, float]:
    words, expected_words = normalise(answer), normalise(expected)
    short = len(normalise(key)) <= NAMED_WORDS
    overlap = Overlap.of(answer, expected)
    named, exact = short and names(answer, key, others), words == expected_words
    return {
        "one": 1,
        "short": int(short),
        "named": int(named),
        "exact": int(exact),
        "right": int(named if short else exact),
        "token_precision": overlap.precision,
        "token_recall": overlap.recall,
        "token_f1": overlap.f1,
        "words": len(words),
        "repetition": repetition(words),
        "expected_words": len(expected_words),
    }


def score_assistant(answers: pd.DataFrame, train: pd.DataFrame) -> pd.DataFrame:
    """Score answers by kind of question, beside a baseline.

    See `score_exercises` for the arguments. Returns a row per kind, sorted, and a last row named
    "all". The assistant's columns have no prefix, the others the prefix `before_` or `baseline_`:

    - named: the share of the `named_rows` with a short expected answer that name the expected
      answer and nothing else, in a sentence or alone (see `overlap.names`); empty without such rows
    - exact_match: the share of answers with the words of the expected answer alone
    - right: the share of answers that name a short expected answer, or match a long one exactly
    - token_precision, token_recall, token_f1: common words; length_ratio: the words of all answers
      divided by the words of all expected answers
    - stopped: the share of answers that ended before the limit; empty where not recorded
    - words: the mean length; repetition: the mean share of four-word runs that repeat earlier runs

    `beats` is true where more answers are right than the baseline's; `beats_interval` where the
    share of right answers also lies above the baseline's 95 % interval.
    """
    scores = score_exercises(answers, train)
    return pd.DataFrame([_score_kind(kind, parts) for kind, parts in by_kind(scores)])


def _score_kind(
    kind: str, parts: Mapping[str, pd.DataFrame]
) -> dict[str, str | int | float | bool]:
    rows = parts["answer"]
    n_short = int(rows["short"].sum())
    scores: dict[str, str | int | float | bool] = {
        "kind": kind,
        "rows": len(rows),
        "named_rows": n_short,
    }
    for column, prefix in COLUMNS.items():
        scores |= {f"{prefix}{name}": value for name, value in _summed(parts[column]).items()}
    right, usual = (wilson(int(parts[name]["right"].sum()), len(rows)) for name in ENDS)
    return scores | {"beats": right.value > usual.value, "beats_interval": right.value > usual.high}


def _summed(rows: pd.DataFrame) -> dict[str, float]:
    n_short = int(rows["short"].sum())
    unknown = Estimate(float("nan"), float("nan"), float("nan"))
    named = wilson(int(rows["named"].sum()), n_short) if n_short else unknown
    is_known = rows[STOPPED].notna().all()
    stopped = wilson(int(rows[STOPPED].sum()), len(rows)) if is_known else unknown
    means = ("token_precision", "token_recall", "token_f1", "words", "repetition")
    return {
        **columns("named", named),
        **columns("right", wilson(int(rows["right"].sum()), len(rows))),
        **columns(STOPPED, stopped),
        **columns("exact_match", wilson(int(rows["exact"].sum()), len(rows))),
        **{name: float(rows[name].mean()) for name in means},
        "length_ratio": float(rows["words"].sum() / max(1, rows["expected_words"].sum())),
    }

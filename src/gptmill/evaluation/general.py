"""Scores of answers to general questions, by kind.

Shares have Wilson's interval, means a bootstrap over the questions.
"""

from collections.abc import Sequence

import pandas as pd

from gptmill.data.questions import Question
from gptmill.evaluation.answering import Answer
from gptmill.evaluation.checks import marked_items, passes
from gptmill.evaluation.estimates import Estimate, bootstrap, wilson
from gptmill.evaluation.overlap import Overlap, normalise, repetition
from gptmill.evaluation.paired import Figure, Floats, Scores, by_kind, columns, ratio, resample

NATS_DIGITS = 6
"""Decimals of written losses; further digits would only show rounding."""

GENERAL = {
    "passed": Figure("passed", "checked"),
    "loss": Figure("nats", "tokens", less_is_better=True),
    "token_f1": Figure("token_f1", "one"),
}
"""The figures in which two models are compared."""


def score_answer(question: Question, answer: Answer) -> dict[str, str | float]:
    """Return the figures of an answer; `passed` is 0 where a question has no check."""
    passed = passes(question, answer.text)
    overlap = Overlap.of(answer.text, question.reference)
    return {
        "kind": question.kind,
        "one": 1,
        "checked": int(passed is not None),
        "passed": int(bool(passed)),
        "nats": answer.nats,
        "tokens": answer.tokens,
        "token_precision": overlap.precision,
        "token_recall": overlap.recall,
        "token_f1": overlap.f1,
        "words": len(normalise(answer.text)),
        "repetition": repetition(normalise(answer.text)),
        "reference_words": len(normalise(question.reference)),
        "list_items": marked_items(answer.text),
        "stopped": int(answer.stopped),
    }


def score_answers(questions: Sequence[Question], answers: Sequence[Answer]) -> pd.DataFrame:
    """Return the figures of every answer, a row per question."""
    pairs = zip(questions, answers, strict=True)
    return pd.DataFrame([score_answer(question, answer) for question, answer in pairs])


def answer_table(
    questions: Sequence[Question],
    base: Sequence[Answer],
    assistant: Sequence[Answer],
    scores: Scores,
) -> pd.DataFrame:
    """Return both models' answers beside the references, a row per question.

    `NAME_passed` is 1 or 0, and empty for a question without a check. `NAME_nats` is the loss of
    the whole reference. `NAME_stopped` is 1 for an answer that ended before the limit.
    """
    rows = [
        {
            "id": question.id,
            "kind": question.kind,
            "question": question.prompt,
            "reference": question.reference,
            "base": first.text,
            "assistant": second.text,
        }
        for question, first, second in zip(questions, base, assistant, strict=True)
    ]
    table = pd.DataFrame(rows)
    for name, scored in scores.items():
        passed = scored["passed"].where(scored["checked"] == 1)
        table[f"{name}_passed"] = passed.astype("Int64")
        table[f"{name}_stopped"] = scored["stopped"]
        table[f"{name}_nats"] = scored["nats"].round(NATS_DIGITS)
    return table


def score_models(scores: Scores, *, resamples: int, seed: int) -> pd.DataFrame:
    """Return a row for each kind and model, and rows of the kind "all".

    `scores` has the result of `score_answers` for each model. `passed` is the share of the checked
    answers, and empty without checked answers; `loss` is in nats per token of the references;
    `length_ratio` is the number of words in all answers divided by the number in all references;
    `repetition` is the mean share of four-word runs that repeat earlier runs;
    `stopped` is the share of answers that ended before the limit.
    """
    table = [
        {"model": model, "kind": kind, **_score(rows, resample(len(rows), resamples, seed))}
        for kind, parts in by_kind(scores)
        for model, rows in parts.items()
    ]
    return pd.DataFrame(table)


def _score(rows: pd.DataFrame, draws: Floats) -> dict[str, float]:
    n, checked = len(rows), int(rows["checked"].sum())
    unknown = Estimate(float("nan"), float("nan"), float("nan"))
    passed = wilson(int(rows["passed"].sum()), checked) if checked else unknown
    return {
        "rows": n,
        **columns("passed", passed),
        **columns("loss", bootstrap(ratio(rows, GENERAL["loss"], draws))),
        "token_precision": float(rows["token_precision"].mean()),
        "token_recall": float(rows["token_recall"].mean()),
        **columns("token_f1", bootstrap(ratio(rows, GENERAL["token_f1"], draws))),
        "words": float(rows["words"].mean()),
        "repetition": float(rows["repetition"].mean()),
        "length_ratio": float(rows["words"].sum() / rows["reference_words"].sum()),
        "list_items": float(rows["list_items"].mean()),
        **columns("stopped", wilson(int(rows["stopped"].sum()), n)),
    }

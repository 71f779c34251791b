"""Examples of a run: answers of the assistant beside the base, and mistakes of classifiers."""

from dataclasses import dataclass

from gptmill.comparing.answers import QUESTION, read_answers, taught_rows
from gptmill.comparing.classifiers import read_predictions
from gptmill.comparing.page import Answers, ordered_answers
from gptmill.comparing.rows import read_strings
from gptmill.comparing.section import Example, change
from gptmill.comparing.side import Side
from gptmill.evaluation.assistant import score_exercises

MISTAKES = 20
"""The mistakes of a classifier on the page."""
WORDS = {
    "lost": "base right, assistant wrong",
    "won": "base wrong, assistant right",
    "both wrong": "both wrong",
    "both right": "both right",
    "unchecked": "without a check",
}
RIGHT = {"1": True, "1.0": True, "True": True, "": None}


@dataclass(frozen=True)
class Mistake:
    """A test row with a wrong prediction."""

    text: str
    label: str
    predicted: str
    probability: float


def answers(side: Side) -> dict[str, Answers]:
    """Return the assistant's answers beside the base's, by title."""
    found = {}
    if side.has("evaluate/general_answers.csv"):
        found["General questions"] = ordered_answers(_general(side), WORDS)
    if side.has("instruct/answers.json"):
        found["Exercises"] = ordered_answers(_exercises(side), WORDS)
    return found


def _general(side: Side) -> list[Example]:
    models = ("base", "assistant")
    columns = [*QUESTION, *models, *(f"{model}_passed" for model in models)]
    table = read_strings(side.file("evaluate/general_answers.csv"), columns)
    right = [[RIGHT.get(cell, False) for cell in table[f"{model}_passed"]] for model in models]
    names = ("kind", "question", "reference", *models)
    fields = zip(*(table[name] for name in names), strict=True)
    flips = map(change, *right)
    return [Example(flip, *row) for flip, row in zip(flips, fields, strict=True)]


def _exercises(side: Side) -> list[Example]:
    table = read_answers(side)
    scores = score_exercises(table, taught_rows([side]))
    right = [scores[column]["right"] == 1 for column in ("before", "answer")]
    asked = (table["instruction"] + "\n" + table["input"]).str.strip()
    columns = (table[name] for name in ("output", "before", "answer"))
    fields = zip(table["kind"], asked, *columns, strict=True)
    flips = map(change, *right)
    return [Example(flip, *row) for flip, row in zip(flips, fields, strict=True)]


def mistakes(side: Side) -> dict[str, tuple[int, list[Mistake]]]:
    """Return the number of wrong test rows of each classifier, and the most confident of them."""
    found = {}
    for stage in ("classify", "lora"):
        if side.has(f"{stage}/predictions.csv"):
            found[stage] = _mistakes(side, stage)
    return found


def _mistakes(side: Side, stage: str) -> tuple[int, list[Mistake]]:
    table = read_predictions(side, stage)
    probabilities = table.filter(regex="^p_").max(axis=1)
    wrong = table.assign(p=probabilities)[table["predicted"] != table["label"]]
    first = wrong.sort_values("p", ascending=False, kind="stable").head(MISTAKES)
    columns = (first[name] for name in ("text", "label", "predicted", "p"))
    return len(wrong), [Mistake(*row) for row in zip(*columns, strict=True)]

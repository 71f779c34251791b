"""Two assistants on common questions: exercises and general questions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from gptmill.comparing.rows import (
    Common,
    common_rows,
    read_records,
    read_strings,
    seen_texts,
)
from gptmill.comparing.section import NATS, Example, Section, change, measured, share
from gptmill.comparing.side import Side
from gptmill.comparing.significance import on_resamples
from gptmill.evaluation.assistant import score_exercises
from gptmill.evaluation.overlap import token_f1
from gptmill.evaluation.paired import Figure, ratio

TAUGHT = "split/instructions"
ASKED = ["history", "instruction", "input"]
OPTIONAL = ["history", "input", "key", "kind", "before"]
EXERCISE = ["instruction", "output", "answer"]
QUESTION = ["question", "reference", "kind"]
SCORES = (Figure("passed", "checked"), Figure("token_f1", "one"))
LOSS = Figure("nats", "one", less_is_better=True)


def exercises(first: Side, second: Side) -> Section:
    """Compare the answers to the exercises of the test part."""
    sides = (first, second)
    common = common_rows(
        [read_answers(side) for side in sides],
        same=[*ASKED, "output", "key", "kind"],
        seen=[seen_texts(side, TAUGHT, "json", _read_taught, ASKED) for side in sides],
        text=ASKED,
    )
    taught = taught_rows(sides)
    scores = [score_exercises(table, taught)["answer"] for table in (common.first, common.second)]
    scores = [table.assign(passed=table["right"], checked=1) for table in scores]
    asked = (common.first["instruction"] + "\n" + common.first["input"]).str.strip()
    rows = pd.DataFrame({"kind": common.first["kind"], "question": asked})
    return _section(
        ("exercises", "Assistant: exercises", "right answers"),
        common,
        scores,
        rows.assign(
            expected=common.first["output"],
            first=common.first["answer"],
            second=common.second["answer"],
        ),
    )


def read_answers(side: Side) -> pd.DataFrame:
    """Return the assistant's answers to the exercises, with the questions."""
    return read_records(side.file("instruct/answers.json"), EXERCISE, optional=OPTIONAL)


def _read_taught(path: Path) -> pd.DataFrame:
    return read_records(
        path, ["instruction", "output"], optional=["history", "input", "key", "kind"]
    )


def taught_rows(sides: Sequence[Side]) -> pd.DataFrame:
    """Return the training rows of both sides, by which exercises are scored."""
    path = f"{TAUGHT}/train.json"
    tables = [_read_taught(side.file(path)) for side in sides if side.has(path)]
    empty = pd.DataFrame(columns=["kind", "output", "key"])
    return pd.concat(tables).drop_duplicates() if tables else empty


def general_questions(first: Side, second: Side) -> Section:
    """Compare the assistants' answers to the general questions."""
    sides, columns = (first, second), [*QUESTION, "assistant", "assistant_passed"]
    common = common_rows(
        [read_strings(side.file("evaluate/general_answers.csv"), columns) for side in sides],
        same=QUESTION,
        seen=[seen_texts(side, TAUGHT, "json", _read_taught, ASKED) for side in sides],
        text=["question"],
    )
    tables = (common.first, common.second)
    checked = (tables[0]["assistant_passed"] != "") & (tables[1]["assistant_passed"] != "")
    scores = [_scored(table, checked) for table in tables]
    if all("assistant_nats" in table for table in tables):  # not in older results
        scores = [
            scored.assign(nats=pd.to_numeric(table["assistant_nats"]))
            for scored, table in zip(scores, tables, strict=True)
        ]
    rows = common.first[QUESTION].rename(columns={"reference": "expected"})
    return _section(
        ("general", "Assistant: general questions", "passed checks"),
        common,
        scores,
        rows.assign(first=tables[0]["assistant"], second=tables[1]["assistant"]),
    )


def _scored(table: pd.DataFrame, checked: "pd.Series[bool]") -> pd.DataFrame:
    pairs = zip(table["assistant"], table["reference"], strict=True)
    return pd.DataFrame(
        {
            "passed": (checked & table["assistant_passed"].isin(["1", "1.0", "True"])).astype(int),
            "checked": checked.astype(int),
            "token_f1": [token_f1(answer, reference) for answer, reference in pairs],
            "one": 1,
        }
    )


def _section(
    names: tuple[str, str, str], common: Common, scores: list[pd.DataFrame], rows: pd.DataFrame
) -> Section:
    name, title, passing = names
    checked = scores[0]["checked"].to_numpy() == 1
    passed = [table["passed"].to_numpy() == 1 for table in scores]
    values = on_resamples(
        lambda weights: np.array(
            [[ratio(table, score, weights) for table in scores] for score in SCORES]
        ),
        len(common),
    )  # (2, 2, 1 + R)
    figures = [measured("token F1", values[1])]
    if "nats" in scores[0]:
        losses = on_resamples(
            lambda weights: np.array([ratio(table, LOSS, weights) for table in scores]),
            len(common),
        )  # (2, 1 + R)
        figures.append(measured("loss", losses, unit=NATS, less_is_better=True))
    if checked.any():
        flags = (passed[0][checked], passed[1][checked])
        figures.insert(0, share(passing, flags, values[0, 1] - values[0, 0]))
    flipped = [
        change(bool(a), bool(b)) if known else "unchecked"
        for a, b, known in zip(*passed, checked, strict=True)
    ]
    fields = rows[["kind", "question", "expected", "first", "second"]].itertuples(index=False)
    return Section(
        name,
        title,
        rows=len(common),
        notes=common.notes,
        figures=tuple(figures),
        examples=tuple(Example(kind, *row) for kind, row in zip(flipped, fields, strict=True)),
    )

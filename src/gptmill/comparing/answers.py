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
from gptmill.comparing.significance import Floats, on_resamples
from gptmill.evaluation.assistant import score_exercises
from gptmill.evaluation.overlap import normalise, repetition, token_f1
from gptmill.evaluation.paired import Figure, ratio

TAUGHT = "split/instructions"
ASKED = ["history", "instruction", "input"]
OPTIONAL = ["history", "input", "key", "kind", "before", "stopped", "before_stopped"]
FLAGS = {"True": 1.0, "False": 0.0}
EXERCISE = ["instruction", "output", "answer"]
QUESTION = ["question", "reference", "kind"]
PASSED, TOKEN_F1 = Figure("passed", "checked"), Figure("token_f1", "one")
STOPPED = Figure("stopped", "one")
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
    table = read_records(side.file("instruct/answers.json"), EXERCISE, optional=OPTIONAL)
    flags = {name: table[name].map(FLAGS) for name in ("stopped", "before_stopped")}
    return table.assign(**flags)


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
    words = [normalise(answer) for answer in table["assistant"]]
    return pd.DataFrame(
        {
            "passed": (checked & table["assistant_passed"].isin(["1", "1.0", "True"])).astype(int),
            "checked": checked.astype(int),
            "token_f1": [token_f1(answer, reference) for answer, reference in pairs],
            "one": 1,
            "stopped": pd.to_numeric(
                table.get("assistant_stopped", np.nan)
            ),  # not in older results
            "words": [len(answer) for answer in words],
            "expected_words": [len(normalise(reference)) for reference in table["reference"]],
            "repetition": [repetition(answer) for answer in words],
        }
    )


def _section(
    names: tuple[str, str, str], common: Common, scores: list[pd.DataFrame], rows: pd.DataFrame
) -> Section:
    name, title, passing = names
    checked = scores[0]["checked"].to_numpy() == 1
    passed = [table["passed"].to_numpy() == 1 for table in scores]
    figures = [measured("token F1", _values(TOKEN_F1, scores))]
    if "nats" in scores[0]:
        figures.append(measured("loss", _values(LOSS, scores), unit=NATS, less_is_better=True))
    if checked.any():
        flags = (passed[0][checked], passed[1][checked])
        figures.insert(0, share(passing, flags, np.diff(_values(PASSED, scores), axis=0)[0]))
    stopped = [table["stopped"].to_numpy(float) for table in scores]
    if not np.isnan(stopped).any():  # not recorded in older results
        flags = (stopped[0] == 1, stopped[1] == 1)
        differences = np.diff(_values(STOPPED, scores), axis=0)[0]
        figures.append(share("answers that stop", flags, differences))
    flipped = [
        change(bool(a), bool(b)) if known else "unchecked"
        for a, b, known in zip(*passed, checked, strict=True)
    ]
    fields = rows[["kind", "question", "expected", "first", "second"]].itertuples(index=False)
    return Section(
        name,
        title,
        rows=len(common),
        notes=(*common.notes, _manner(scores)),
        figures=tuple(figures),
        examples=tuple(Example(kind, *row) for kind, row in zip(flipped, fields, strict=True)),
    )


def _values(figure: Figure, scores: list[pd.DataFrame]) -> Floats:
    """Return a figure of both sides on the rows and their resamples, (2, 1 + R)."""
    return on_resamples(
        lambda weights: np.array([ratio(table, figure, weights) for table in scores]),
        len(scores[0]),
    )


def _manner(scores: list[pd.DataFrame]) -> str:
    """Return length and repetition of both sides' answers in words."""
    lengths = [table["words"].sum() / max(1, table["expected_words"].sum()) for table in scores]
    repeated = [table["repetition"].mean() for table in scores]
    return (
        f"length in words of the expected answers: {lengths[0]:.2f} in A, {lengths[1]:.2f} in B; "
        f"share of four-word runs that repeat an earlier run: {repeated[0]:.3f} in A, "
        f"{repeated[1]:.3f} in B"
    )

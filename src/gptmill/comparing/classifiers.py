"""Two classifiers on common test rows: accuracy, F1 and ROC AUC of the rare class.

Letters: N rows, R resamples.
"""

from functools import partial

import numpy as np
import pandas as pd

from gptmill.comparing.rows import Common, common_rows, read_strings, seen_texts
from gptmill.comparing.section import Example, MissingError, Section, change, measured, share
from gptmill.comparing.side import Side
from gptmill.comparing.significance import Flags, Floats, on_resamples
from gptmill.evaluation.classifier import confusion, roc_auc
from gptmill.evaluation.paired import Figure, ratio

LABELLED = "split/labelled"
ACCURACY = Figure("right", "one")
F1 = Figure("twice_hits", "marked")
"""2 TP / (predicted positives + actual positives), a ratio of sums."""


def classifiers(first: Side, second: Side, *, stage: str, title: str) -> Section:
    """Compare the predictions of a stage on the common test rows."""
    sides = (first, second)
    tables = [read_predictions(side, stage) for side in sides]
    names = [_class_names(table) for table in tables]
    if names[0] != names[1]:
        raise MissingError(
            f"the classes differ: A has {', '.join(names[0])}; B has {', '.join(names[1])}"
        )
    read = partial(read_strings, columns=["text"])
    common = common_rows(
        tables,
        same=["text", "label"],
        seen=[seen_texts(side, LABELLED, "csv", read, ["text"]) for side in sides],
        text=["text"],
    )
    return _section(common, names[0], name=stage, title=title)


def read_predictions(side: Side, stage: str) -> pd.DataFrame:
    """Return predictions of a stage with text, label, predicted and probabilities p_*.

    An old predictions.csv has no texts: the side's own test rows, in the same order, have.
    """
    path = side.file(f"{stage}/predictions.csv")
    table = read_strings(path, ["label"])
    if "text" not in table:
        test = read_strings(side.file(f"{LABELLED}/test.csv"), ["text", "label"])
        if list(test["label"]) != list(table["label"]):
            raise MissingError(f"{path} has no texts, and {LABELLED}/test.csv has other rows")
        table.insert(0, "text", test["text"])
    columns = [f"p_{name}" for name in _class_names(table)]
    try:
        probabilities = table[columns].astype(np.float64)
    except ValueError as error:
        raise ValueError(f"{path}: a probability is not a number ({error})") from None
    unknown = set(table["label"]) - set(_class_names(table))
    if unknown or not np.isfinite(probabilities.to_numpy()).all():
        raise ValueError(
            f"{path} needs a column p_LABEL of numbers for each label; "
            f"the columns are {', '.join(table.columns)}"
        )
    predicted = np.array(_class_names(table))[probabilities.to_numpy().argmax(axis=1)]
    return pd.concat([table[["text", "label"]].assign(predicted=predicted), probabilities], axis=1)


def _class_names(table: pd.DataFrame) -> list[str]:
    return [str(name)[2:] for name in table.columns if str(name).startswith("p_")]


def _section(common: Common, names: list[str], *, name: str, title: str) -> Section:
    tables = (common.first, common.second)
    labels = common.first["label"]
    rare = str(labels.value_counts().sort_index(kind="stable").idxmin())
    first, second = ((table["predicted"] == labels).to_numpy() for table in tables)
    right = (first, second)
    values = _figures(tables, right, rare)
    accuracy, f1, roc = values  # (2, 1 + R) each
    figures = [share("accuracy", right, accuracy[1] - accuracy[0])]
    notes = list(common.notes)
    if labels.nunique() > 1:
        figures += [measured(f"F1 of {rare}", f1), measured(f"ROC AUC of {rare}", roc)]
    else:
        notes.append(f"all common rows are {rare}: F1 and ROC AUC need two classes")
    return Section(
        name,
        title,
        rows=len(common),
        notes=tuple(notes),
        figures=tuple(figures),
        confusions={
            letter: (tuple(names), _counts(table, names))
            for letter, table in zip("AB", tables, strict=True)
        },
        examples=tuple(_examples(tables, right)),
    )


def _figures(tables: tuple[pd.DataFrame, ...], right: tuple[Flags, Flags], rare: str) -> Floats:
    """Return accuracy, F1 and AUC of both sides, on rows and resamples: (3, 2, 1 + R)."""
    actual = (tables[0]["label"] == rare).to_numpy()
    counted = [_counted(table, flags, rare) for table, flags in zip(tables, right, strict=True)]
    scores = [table[f"p_{rare}"].to_numpy(np.float64) for table in tables]

    def measure(weights: Floats) -> Floats:
        return np.array(
            [
                [ratio(rows, ACCURACY, weights) for rows in counted],
                [ratio(rows, F1, weights) for rows in counted],
                [roc_auc(actual, score, weights) for score in scores],
            ]
        )

    return on_resamples(measure, len(actual))


def _counted(table: pd.DataFrame, right: Flags, rare: str) -> pd.DataFrame:
    actual, predicted = (table[name] == rare for name in ("label", "predicted"))
    return pd.DataFrame(
        {
            "one": 1,
            "right": right,
            "twice_hits": 2 * (actual & predicted).astype(int),
            "marked": actual.astype(int) + predicted.astype(int),
        }
    )


def _counts(table: pd.DataFrame, names: list[str]) -> tuple[tuple[int, ...], ...]:
    actual, predicted = (
        table[column].map(names.index).to_numpy(np.int64) for column in ("label", "predicted")
    )
    return tuple(tuple(row) for row in confusion(actual, predicted, len(names)).tolist())


def _examples(tables: tuple[pd.DataFrame, ...], right: tuple[Flags, Flags]) -> list[Example]:
    """Return the rows that A or B has wrong."""
    rows = zip(
        tables[0]["text"],
        tables[0]["label"],
        *(_answers(table) for table in tables),
        *right,
        strict=True,
    )
    return [
        Example(change(bool(a), bool(b)), label, text, label, first, second)
        for text, label, first, second, a, b in rows
        if not (a and b)
    ]


def _answers(table: pd.DataFrame) -> list[str]:
    columns = [name for name in table.columns if str(name).startswith("p_")]
    highest = table[columns].max(axis=1)
    return [f"{name} ({p:.3f})" for name, p in zip(table["predicted"], highest, strict=True)]

"""Three-way splits of labelled texts and instructions, free of leaks.

Equal rows are removed before the split, and near-duplicates stay in the same part. Otherwise a
message and its twin may be in the training and the test part, and the test score measures how
well the model remembers.

A row without near-duplicates has a part that depends on the seed and the row's own text alone. A
near-duplicate of earlier rows goes to the part of the earlier rows. A row similar to earlier rows
of two parts is left out. Consequence: rows added at the end of a file never move the rows before.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from gptmill.data.near_duplicates import earlier_twins, examples, shingles, words
from gptmill.data.parts import PARTS, Fractions, draw
from gptmill.data.row_files import fold, trim_label

QUOTES = ("''", '""', "\u2018\u2019", "\u201c\u201d", "\u00ab\u00bb")  # opening and closing marks
QUOTED = re.compile("|".join(rf"(?<!\w){pair[0]}(.+?){pair[1]}(?!\w)" for pair in QUOTES))
FUNCTION_WORDS = frozenset(
    words(
        "a about an and are as at be by can could did do does for from had has have how i in into"
        " is it its me my of on or please s should t that the their there these this those to was"
        " we were what when where which who whom whose why will with would you your"
    )
)
PAIRS_OF_PARTS = (("validation", "train"), ("test", "train"), ("test", "validation"))


@dataclass(frozen=True)
class Split:
    """The three tables by part name, the row counts, and examples of near-duplicates."""

    parts: dict[str, pd.DataFrame]
    counts: dict[str, int]
    near: pd.DataFrame


def split_labelled(
    table: pd.DataFrame, fractions: Fractions, *, near_duplicates: float, seed: int
) -> Split:
    """Split labelled texts.

    Labels lose spaces and invisible characters at both ends. Only the first of several equal
    texts is used. Texts with two labels are left out, because the right label is unknown. Texts
    with a similarity of `near_duplicates` or more are in the same part. Raises ValueError if fewer
    than two labels remain or a label has too few texts for all parts.
    """
    trimmed = table["label"].map(trim_label)
    n_trimmed = int((trimmed != table["label"]).sum())
    table = table.assign(label=trimmed)
    keys = table["text"].map(fold)
    conflicting = table["label"].groupby(keys).transform("nunique") > 1
    used = table[~keys.duplicated() & ~conflicting]
    labels = used["label"].value_counts()
    if len(labels) < 2:
        raise ValueError(
            f"the labelled texts have too few labels ({', '.join(labels.index) or 'none'});"
            " a classifier needs two or more"
        )
    sets = [shingles(words(text)) for text in used["text"]]
    split = _split(
        used,
        keys,
        sets,
        texts=list(used["text"]),
        subjects=[f"label {label!r}" for label in used["label"]],
        fractions=fractions,
        threshold=near_duplicates,
        seed=seed,
    )
    more = {"conflicting": int(keys[conflicting].nunique()), "trimmed_labels": n_trimmed}
    return replace(split, counts=split.counts | more)


def split_instructions(
    table: pd.DataFrame, fractions: Fractions, *, near_duplicates: float, seed: int
) -> Split:
    """Split instruction rows.

    Of rows with equal prompts (earlier messages, instruction and input) only the first is used,
    regardless of the answers, to keep every prompt of the test part out of training. Rows of the
    same kind with a content similarity of `near_duplicates` or more are in the same part. Raises
    ValueError if a part would be empty.
    """
    earlier = _earlier(table, ("system", "user", "assistant"))
    keys = (earlier + table["instruction"] + "\n" + table["input"]).map(fold)
    used = table[~keys.duplicated()]
    asked = _earlier(used, ("user",)) + used["instruction"]
    columns = (used["kind"], asked, used["input"])
    sets = [
        frozenset(f"{kind}\n{shingle}" for shingle in shingles(content(instruction, row_input)))
        for kind, instruction, row_input in zip(*columns, strict=True)
    ]
    split = _split(
        used,
        keys,
        sets,
        texts=list(used["instruction"] + " " + used["input"]),
        subjects=["the instruction set"] * len(used),
        fractions=fractions,
        threshold=near_duplicates,
        seed=seed,
    )
    answers = table["output"].map(fold).groupby(keys).nunique()
    return replace(split, counts=split.counts | {"conflicting": int((answers > 1).sum())})


def _earlier(table: pd.DataFrame, roles: Sequence[str]) -> "pd.Series[str]":
    """Return the earlier messages of each row by these roles, a line each."""
    if "history" not in table:
        return pd.Series("", index=table.index, dtype="str")
    return table["history"].map(
        lambda history: "".join(f"{m['content']}\n" for m in history if m["role"] in roles)
    )


def content(instruction: str, row_input: str) -> list[str]:
    """Return the words that tell a prompt from other prompts of the same template.

    The content is the input and every quoted passage of the instruction: "Define 'sea'." and
    "What does 'sea' mean?" have equal contents, "Define 'sea'." and "Define 'sky'." do not. The
    content of an instruction with neither is the instruction without English function words.
    """
    quoted = ["".join(groups) for groups in QUOTED.findall(instruction)]
    specific = words(" ".join([*quoted, row_input]))
    if specific:
        return specific
    spoken = words(instruction)
    return [word for word in spoken if word not in FUNCTION_WORDS] or spoken


@dataclass(frozen=True)
class Grouping:
    """Groups of near-duplicates by the number of the first row, and the part of each group.

    `leads` has each row's group; None for a row similar to rows of two parts.
    """

    leads: list[int | None]
    parts: dict[int, str]

    @property
    def row_parts(self) -> list[str | None]:
        """Return each row's part; None for a row that is left out."""
        return [None if lead is None else self.parts[lead] for lead in self.leads]


def group(draws: Sequence[float], twins: Sequence[Sequence[int]], fractions: Fractions) -> Grouping:
    """Group rows with their earlier twins, in file order; a group has the first row's part."""
    leads: list[int | None] = []
    members: dict[int, list[int]] = {}
    for row, earlier in enumerate(twins):
        joined = sorted({lead for lead in (leads[twin] for twin in earlier) if lead is not None})
        if len({fractions.part(draws[lead]) for lead in joined}) > 1:
            leads.append(None)
            continue
        first, *others = joined or [row]
        leads.append(first)
        members.setdefault(first, []).append(row)
        for other in others:
            for member in members[other]:
                leads[member] = first
            members[first] += members.pop(other)
    return Grouping(leads, {lead: fractions.part(draws[lead]) for lead in members})


def fill_empty_parts(
    grouping: Grouping, draws: Sequence[float], subjects: Sequence[str], fractions: Fractions
) -> Grouping:
    """Give each empty part of a subject the nearest group of the subject's largest part.

    A subject with few rows may have no row in a part by chance. Only then do rows added later
    move a row: the group returns to its own part as soon as the borrowing part has a row.
    """
    parts = dict(grouping.parts)
    for subject in sorted(set(subjects)):
        leads = sorted(
            {
                lead
                for lead, name in zip(grouping.leads, subjects, strict=True)
                if name == subject and lead is not None
            }
        )
        for part in PARTS:
            sizes = Counter(parts[lead] for lead in leads)
            if sizes[part] == 0 and max(sizes.values()) > 1:
                largest = max(PARTS, key=lambda name: sizes[name])
                donors = [lead for lead in leads if parts[lead] == largest]
                parts[min(donors, key=lambda lead: fractions.distance(draws[lead], part))] = part
    return Grouping(grouping.leads, parts)


def rows_near(pairs: Sequence[tuple[int, int]], parts: Sequence[str | None]) -> dict[str, int]:
    """Count rows with a twin in a different part, per pair of parts.

    Only the rows of the pair's first part are counted.
    """
    counts = {}
    for first, second in PAIRS_OF_PARTS:
        near = {
            row
            for a, b in pairs
            for row, twin in ((a, b), (b, a))
            if parts[row] == first and parts[twin] == second
        }
        counts[f"{first}_rows_in_{second}"] = len(near)
    return counts


def _split(
    used: pd.DataFrame,
    keys: "pd.Series[str]",
    sets: Sequence[frozenset[str]],
    *,
    texts: Sequence[str],
    subjects: Sequence[str],
    fractions: Fractions,
    threshold: float,
    seed: int,
) -> Split:
    """Split the rows `used`; `keys` has the folded text of all rows, equal ones too."""
    draws = [draw(key, seed=seed) for key in keys[used.index]]
    twins = earlier_twins(sets, threshold)
    grouping = group(draws, twins, fractions)
    grouping = fill_empty_parts(grouping, draws, subjects, fractions)
    _check_parts(subjects, grouping, fractions)
    parts = grouping.row_parts
    pairs = [(row, twin) for row, earlier in enumerate(twins) for twin in earlier]
    leaks = rows_near(pairs, parts)
    assert not any(leaks.values())
    row_parts = pd.Series(parts, index=used.index)
    tables = {part: used[row_parts == part].reset_index(drop=True) for part in PARTS}
    kept = sum(lead is not None for lead in grouping.leads)
    single = [fractions.part(number) for number in draws]
    counts = {
        "rows": len(keys),
        "removed": len(keys) - len(used),
        "near_duplicates": kept - len(grouping.parts),
        "groups": len(grouping.parts),
        "near_two_parts": len(used) - kept,
        **{part: len(table) for part, table in tables.items()},
        **{f"near_{name}": count for name, count in leaks.items()},
        **{f"row_by_row_near_{name}": n for name, n in rows_near(pairs, single).items()},
        **{f"with_duplicates_{name}": n for name, n in _equal_rows(keys, fractions, seed).items()},
    }
    near = pd.DataFrame(examples(pairs, texts, sets, parts=parts, alone=single))
    return Split(tables, counts, near)


def _equal_rows(keys: "pd.Series[str]", fractions: Fractions, seed: int) -> dict[str, int]:
    """Count rows that share a text with a different part, were each row drawn on its own."""
    nth = keys.groupby(keys).cumcount()
    drawn = [draw(f"{n} {key}", seed=seed) for n, key in zip(nth, keys, strict=True)]
    parts = pd.Series([fractions.part(number) for number in drawn], index=keys.index)
    return {
        f"{first}_rows_in_{second}": int(keys[parts == first].isin(keys[parts == second]).sum())
        for first, second in PAIRS_OF_PARTS
    }


def _check_parts(subjects: Sequence[str], grouping: Grouping, fractions: Fractions) -> None:
    rows: dict[str, int] = Counter(subjects)
    leads = {pair for pair in zip(subjects, grouping.leads, strict=True) if pair[1] is not None}
    groups = Counter((name, grouping.parts[lead]) for name, lead in leads if lead is not None)
    for subject, n_rows in rows.items():
        for part in PARTS:
            if not groups[subject, part]:
                n_groups = sum(groups[subject, name] for name in PARTS)
                raise ValueError(
                    f"{subject} has {n_rows} distinct rows in {n_groups} groups of near-duplicates,"
                    f" too few for the {part} part at {getattr(fractions, part):g} of the rows;"
                    " add rows that differ, change the fractions, or raise near_duplicates"
                    " (1: only rows with equal words are near-duplicates)"
                )

import csv
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from gptmill.data.splits import (
    PARTS,
    Fractions,
    Split,
    fold,
    read_instructions,
    read_labelled,
    split_instructions,
    split_labelled,
)

LABELLED = Fractions(train=0.7, validation=0.1, test=0.2)
INSTRUCTIONS = Fractions(train=0.85, validation=0.05, test=0.1)


def labelled(ham: int = 87, spam: int = 13) -> pd.DataFrame:
    rows = [("ham", f"see you at {n}") for n in range(ham)]
    rows += [("spam", f"win prize {n}") for n in range(spam)]
    return pd.DataFrame(rows, columns=["label", "text"])


def instructions(rows: int = 200) -> pd.DataFrame:
    kinds = ("synonym", "antonym")
    records = [(f"Do {n}.", "", f"Done {n}.", kinds[n % 2]) for n in range(rows)]
    return pd.DataFrame(records, columns=["instruction", "input", "output", "kind"])


def rows_of(split: Split) -> list[tuple[str, ...]]:
    return sorted(tuple(row) for part in split.parts.values() for row in part.to_numpy())


def test_the_parts_are_the_whole_set_in_the_stated_sizes_and_label_ratios():
    split = split_labelled(labelled(870, 130), LABELLED, seed=1)
    assert rows_of(split) == sorted(tuple(row) for row in labelled(870, 130).to_numpy())
    sizes = {name: part["label"].value_counts().to_dict() for name, part in split.parts.items()}
    assert sizes == {
        "train": {"ham": 609, "spam": 91},
        "validation": {"ham": 87, "spam": 13},
        "test": {"ham": 174, "spam": 26},
    }


def test_instructions_are_split_85_5_10_by_kind():
    split = split_instructions(instructions(), INSTRUCTIONS, seed=1)
    assert {name: len(part) for name, part in split.parts.items()} == {
        "train": 170,
        "validation": 10,
        "test": 20,
    }
    assert all(part["kind"].value_counts().nunique() == 1 for part in split.parts.values())


def test_the_split_is_a_function_of_seed_and_text_and_not_of_the_order_of_rows():
    table = labelled()
    here = split_labelled(table, LABELLED, seed=1)
    again = split_labelled(table.sample(frac=1, random_state=3), LABELLED, seed=1)
    other = split_labelled(table, LABELLED, seed=2)
    for name in PARTS:
        assert sorted(here.parts[name]["text"]) == sorted(again.parts[name]["text"])
        assert sorted(here.parts[name]["text"]) != sorted(other.parts[name]["text"])


def test_duplicates_go_before_the_split_and_what_they_would_have_leaked_is_counted():
    doubled = pd.concat([labelled(), labelled().assign(text=lambda t: t["text"].str.upper() + " ")])
    doubled = doubled.reset_index(drop=True)
    split = split_labelled(doubled, LABELLED, seed=1)
    assert rows_of(split) == rows_of(split_labelled(labelled(), LABELLED, seed=1))
    assert split.counts["removed"] == 100
    texts = {name: set(part["text"].map(fold)) for name, part in split.parts.items()}
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["validation"]
    # Each row has one twin; it is in the other part about as often as that part is large.
    assert 15 <= split.counts["with_duplicates_test_rows_in_train"] <= 40
    clean = split_labelled(labelled(), LABELLED, seed=1)
    assert clean.counts["with_duplicates_test_rows_in_train"] == 0


def test_a_text_with_two_labels_is_left_out():
    odd = pd.DataFrame({"label": ["ham", "spam"], "text": ["Call me", "call  ME"]})
    split = split_labelled(pd.concat([labelled(), odd], ignore_index=True), LABELLED, seed=1)
    assert "call me" not in {fold(row[1]) for row in rows_of(split)}
    assert (split.counts["conflicting"], split.counts["removed"]) == (1, 2)


def test_of_equal_prompts_one_is_kept_whatever_it_answers():
    twins = instructions().assign(output="Something else.")
    split = split_instructions(
        pd.concat([instructions(), twins], ignore_index=True), INSTRUCTIONS, seed=1
    )
    assert rows_of(split) == rows_of(split_instructions(instructions(), INSTRUCTIONS, seed=1))
    assert (split.counts["conflicting"], split.counts["removed"]) == (200, 200)


def test_input_is_part_of_the_prompt():
    table = instructions().assign(instruction="Do.", input=[f"{n}" for n in range(200)])
    assert split_instructions(table, INSTRUCTIONS, seed=1).counts["removed"] == 0


def test_reading_keeps_texts_as_they_are(tmp_path: Path):
    texts = ["", 'say "hi", ok', "NA", "007", "two\nlines", "naïve £5", " spaced "]
    path = tmp_path / "some.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "who", "label")] + [(t or "x", 1, "a") for t in texts])
    assert list(read_labelled(path)["text"]) == [t or "x" for t in texts]
    assert list(read_labelled(path).columns) == ["label", "text"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no column label and no column text; the first line names nothing"),
        (b"kind,text\nham,hi\n", "no column label; the first line names kind, text"),
        (b"label,text\nham,hi\nham, \n", "row 2 has an empty text"),
        (b"label,text\n,hi\n", "row 1 has an empty label"),
        (b"label,text\nham,hi, there\n", "row 1 has 3 cells"),
        (b"label,text\nham\n", "row 1 has 1 cells"),
        (b'label,text\nham,"hi\nham,there\n', "not CSV"),
        (b"label,text\nham,ol\xe9\n", "not UTF-8 text (line 2)"),
        (b"PK\x03\x04\0\0", "not UTF-8 text (line 1)"),
        (b"label,text\n", "has a header but no rows"),
        (b"label,text,label\nham,hi,spam\n", "has 2 columns label"),
        (b"text,label,text\nham,hi,spam\n", "has 2 columns text"),
        ("label,text\n\u200b\u00a0,hi\n".encode(), "row 1 has an empty label"),
        (b"label,text\n1,hi\n1.0,ho\n", "the labels '1' and '1.0', which differ only in"),
        (b"label,text\nspam,hi\nSpam ,ho\n", "the labels 'spam' and 'Spam'"),
        ("label,text\nspam,hi\nsp\u200bam,ho\n".encode(), "which differ only in case, spaces"),
        ("label,text\nno spam,hi\nno\u00a0spam,ho\n".encode(), "which differ only in"),
        ("label,text\n\u00e9,hi\ne\u0301,ho\n".encode(), "which differ only in"),
    ],
)
def test_what_is_not_a_labelled_file_is_named(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "some.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_labelled(path)


def test_labels_are_trimmed_and_counted(tmp_path: Path):
    path = tmp_path / "some.csv"
    odd = ["spam", "spam ", "\u00a0spam", "spam\u200b", "\ufeffspam\t"]
    rows = [f"{odd[n % 5]},win {n}" for n in range(50)] + [f"ham,see you {n}" for n in range(50)]
    path.write_text("\n".join(["label,text", *rows]) + "\n", encoding="utf-8")
    split = split_labelled(read_labelled(path), LABELLED, seed=1)
    assert {label for part in split.parts.values() for label in part["label"]} == {"ham", "spam"}
    assert split.counts["trimmed_labels"] == 40


def test_a_cell_may_be_as_long_as_a_book(tmp_path: Path):
    path = tmp_path / "some.csv"
    path.write_text(f"label,text\nham,{'x' * 300_000}\n")
    assert len(read_labelled(path)["text"][0]) == 300_000


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"gone\.csv does not exist"):
        read_labelled(tmp_path / "gone.csv")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (labelled(spam=0), "too few labels (ham)"),
        (labelled(spam=3), "label 'spam' has 3 distinct rows, too few for the validation part"),
    ],
)
def test_labels_that_cannot_be_in_each_part_are_named(table: pd.DataFrame, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        split_labelled(table, LABELLED, seed=1)


def test_instruction_rows_are_read_with_input_and_kind_filled_in(tmp_path: Path):
    path = tmp_path / "some.json"
    path.write_text(json.dumps([{"instruction": "a", "output": "b", "more": 1, "input": None}]))
    assert read_instructions(path).to_dict("records") == [
        {"instruction": "a", "input": "", "output": "b", "kind": "other"}
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "not JSON"),
        ("[]", "at least one"),
        ('{"instruction": "a"}', "JSON list"),
        ("[1]", "row 1 is not a JSON object"),
        ('[{"instruction": "a", "output": "b"}, {"instruction": "a"}]', "row 2 has no output"),
        ('[{"instruction": "a", "output": " "}]', "row 1 has no output"),
        ('[{"instruction": "", "output": "b"}]', "row 1 has no instruction"),
        ('[{"instruction": "a", "output": 4}]', "row 1: output must be text, not 4"),
        ('[{"instruction": "a", "output": "b", "output": "c"}]', "two values for 'output'"),
        ("[" * 100_000, "nested too deeply"),
        ('[{"instruction": "a\\ud800", "output": "b"}]', "row 1: instruction has half a surrogate"),
    ],
)
def test_what_is_not_an_instruction_file_is_named(tmp_path: Path, content: str, message: str):
    path = tmp_path / "some.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_instructions(path)


def test_too_few_instructions_are_named():
    with pytest.raises(ValueError, match="4 distinct rows, too few for the test part"):
        split_instructions(instructions(4), INSTRUCTIONS, seed=1)


@pytest.mark.parametrize("given", [(0.7, 0.2, 0.2), (1.0, 0.0, 0.0), (1.2, -0.1, -0.1)])
def test_fractions_are_a_whole(given: tuple[float, float, float]):
    with pytest.raises(ValueError, match="together they must be 1"):
        Fractions(*given)

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from gptmill.data.row_files import instruction_records, read_instructions, read_labelled


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


def test_a_cell_may_be_as_long_as_a_book(tmp_path: Path):
    path = tmp_path / "some.csv"
    path.write_text(f"label,text\nham,{'x' * 300_000}\n")
    assert len(read_labelled(path)["text"][0]) == 300_000


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"gone\.csv does not exist"):
        read_labelled(tmp_path / "gone.csv")


def test_instruction_rows_are_read_with_input_and_kind_filled_in(tmp_path: Path):
    path = tmp_path / "some.json"
    path.write_text(json.dumps([{"instruction": "a", "output": "b", "more": 1, "input": None}]))
    assert read_instructions(path).to_dict("records") == [
        {"instruction": "a", "input": "", "output": "b", "kind": "other", "key": ""}
    ]


def test_earlier_messages_are_read_and_written_where_a_row_has_them(tmp_path: Path):
    path, said = tmp_path / "some.json", [{"role": "system", "content": "s"}]
    said += [{"role": "user", "content": "u"}, {"role": "assistant", "content": "v"}]
    row = {"instruction": "a", "input": "", "output": "b", "kind": "k", "key": ""}
    path.write_text(json.dumps([row, {**row, "history": said}]))
    assert instruction_records(read_instructions(path)) == [row, {**row, "history": said}]


def with_history(history: Any) -> str:
    return json.dumps([{"instruction": "a", "output": "b", "history": history}])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (with_history("x"), "row 1: history must be a list of messages, not 'x'"),
        (with_history([{"role": "user", "content": "x"}]), "history has the roles user; allowed"),
        (with_history([{"role": "system", "content": 1}]), "has a content that is no text, '1'"),
        ("[", "some.json is not UTF-8 JSON"),
        ("[]", "at least one"),
        ('{"instruction": "a"}', "JSON list"),
        ("[1]", "row 1 is not a JSON object"),
        ('[{"instruction": "a", "output": "b"}, {"instruction": "a"}]', "row 2 has no output"),
        ('[{"instruction": "a", "output": " "}]', "row 1 has no output"),
        ('[{"instruction": "", "output": "b"}]', "row 1 has no instruction"),
        ('[{"instruction": "a", "output": 4}]', "row 1: output must be text, not 4"),
        (
            '[{"instruction": "a", "output": "b", "output": "c"}]',
            "an object has the key 'output' twice",
        ),
        ("[" * 100_000, "nested too deeply"),
        ('[{"instruction": "a\\ud800", "output": "b"}]', "row 1: instruction has half a surrogate"),
    ],
)
def test_what_is_not_an_instruction_file_is_named(tmp_path: Path, content: str, message: str):
    path = tmp_path / "some.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_instructions(path)

"""Own data in the forms people have it: one data set, one canonical file, whatever the form."""

import gzip
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from gptmill.data.row_files import parse_instructions, read_labelled
from gptmill.sources.own.chats import chat_fields, chats
from gptmill.sources.own.labels import label_fields, labels
from gptmill.sources.own.texts import text_fields, texts

ROWS = [
    {"message": 'Grüße, "hi"\r\nthere', "category": "a", "id": 1},
    {"message": "NA", "category": "b;c", "id": 2},
    {"message": " pay; now\t|", "category": "007", "id": 3},
    {"message": "", "category": "a", "id": 4},
    {"message": "\u201cquoted\u201d", "category": " a ", "id": 5},
]
TABLE = pd.DataFrame(ROWS)
FIELDS = {"label": "category", "text": "message"}


def zstd(content: bytes) -> bytes:
    packed: bytes = pa.compress(content, codec="zstd", asbytes=True)
    return packed


def parquet(table: pd.DataFrame) -> bytes:
    file = io.BytesIO()
    table.to_parquet(file)
    return file.getvalue()


def comma(**options: Any) -> str:
    return TABLE.to_csv(index=False, **options)


FORMS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "plain": ("t.csv", lambda: comma().encode(), ""),
    "Excel": (
        "t.csv",
        lambda: comma(sep=";", lineterminator="\r\n").encode("utf-8-sig"),
        "t.csv: UTF-8 with a byte order mark, columns separated by semicolons",
    ),
    "UTF-16": (
        "T.CSV",
        lambda: comma(sep="\t").encode("utf-16"),
        "T.CSV: UTF-16, columns separated by tabs",
    ),
    "cp1252": (
        "t.csv.gz",
        lambda: gzip.compress(comma(sep="|").encode("cp1252")),
        "t.csv.gz: cp1252 (for example 'Grüße'), columns separated by bars",
    ),
    "tsv": (
        "t.tsv.zst",
        lambda: zstd(comma(sep="\t").encode()),
        "t.tsv.zst: columns separated by tabs",
    ),
    "lines": ("t.jsonl", lambda: TABLE.to_json(orient="records", lines=True).encode(), ""),
    "list": ("t.json.zst", lambda: zstd(json.dumps(ROWS).encode()), ""),
    "no mark": (
        "t.json",
        lambda: json.dumps(ROWS).encode("utf-16-le"),
        "t.json: UTF-16 without a mark",
    ),
    "parquet": ("t.parquet", lambda: parquet(TABLE), ""),
}


@pytest.mark.parametrize("form", list(FORMS))
def test_a_labelled_set_in_any_form_gives_the_same_bytes(form: str, tmp_path: Path) -> None:
    name, content, note = FORMS[form]
    members = {name: content()}
    assert label_fields(members) == FIELDS
    made = labels(members, name="t", fields=FIELDS)
    (tmp_path / "t.csv").write_bytes(made["t.csv"])
    assert list(read_labelled(tmp_path / "t.csv").itertuples(index=False, name=None)) == [
        ("a", 'Grüße, "hi"\nthere'),
        ("b;c", "NA"),
        ("007", " pay; now\t|"),
        ("a", "\u201cquoted\u201d"),
    ]
    dropped = "rows dropped: 1 with no label or no text"
    assert made.notes == [*filter(None, [note]), "columns left out: id", dropped]


def test_labels_of_any_type_and_tables_without_a_header() -> None:
    of_lines = labels(
        {"t.jsonl": b'{"y": 1, "text": "one"}\n{"y": true, "text": "two"}\n{"text": "none"}'},
        name="t",
        fields={"label": "y", "text": "text"},
    )
    assert of_lines["t.csv"] == b"label,text\n1,one\nTrue,two\n"
    # a quote that opens no cell is a letter, as in the SMS Spam Collection
    of_tabs = labels(
        {"sms.tsv": b'ham\t"Go on, then\nspam\tWin, win\n'},
        name="t",
        fields={"label": "1", "text": "2"},
    )
    assert of_tabs["t.csv"] == b'label,text\nham,"""Go on, then"\nspam,"Win, win"\n'


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (b"Review text;Mood", {"text": "Review text", "label": "Mood"}),
        (b"MessageBody;Ticket category", {"text": "MessageBody", "label": "Ticket category"}),
        (b"text_id;body;tag", {"text": "body", "label": "tag"}),
        (b"text_length;mail;label", None),
        (b"first comment;last comment;label", None),
    ],
)
def test_columns_are_known_by_a_word_of_their_names(
    header: bytes, found: dict[str, str] | None
) -> None:
    content = header + b"\n" + b";".join([b"1"] * len(header.split(b";"))) + b"\n"
    if found is None:
        with pytest.raises(ValueError, match="has no single column for text"):
            label_fields({"x.csv": content})
    else:
        assert label_fields({"x.csv": content}) == found


def test_numbered_classes_of_hugging_face_get_their_names() -> None:
    table = pa.table({"text": ["a", "b"], "label": [1, 0]})
    features = {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}
    info = json.dumps({"info": {"features": features}})
    file = io.BytesIO()
    pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": info}), file)
    made = labels(
        {"x.parquet": file.getvalue()},
        name="x",
        fields=label_fields({"x.parquet": file.getvalue()}),
    )
    assert made["x.csv"] == b"label,text\npos,a\nneg,b\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "x.csv",
            b"a,b\n1,2\n",
            "x.csv has no single column for label and text; the columns are a",
        ),
        (
            "x.csv",
            b"tag,topic,text\n1,2,3\n",
            "no single column for label; the columns are tag ('1')",
        ),
        ("x.csv", b"label,text\nx,y,z\n", "Row #2: Expected 2 columns, got 3: x,y,z; put cells"),
        (
            "x.csv",
            b'label,text\n"x,y",a\nz,"b,c\n',
            "row 3 has a double quote that is never closed",
        ),
        ("x.csv", b"", "x.csv is empty; the first line names the columns"),
        ("x.csv", b"label,text\n", "x.csv has no rows; add a row for each text"),
        ("x.csv", b"label,text,text\na,b,c\n", "x.csv has two columns text; rename one of them"),
        ("x.csv", b"\x89PNG\r\n\x1a\n\0\0abc", "x.csv is not a text file: zero byte at offset 8"),
        ("x.csv", b"label,text\na,\x81\n", "x.csv is neither UTF-8 nor another known encoding"),
        ("x.xlsx", b"PK", "x.xlsx: no table; allowed endings are .csv, .tsv, .jsonl, .json"),
        ("x.jsonl", b'{"label": 1}\n{"label"', "x.jsonl, line 2 is not UTF-8 JSON"),
        ("x.json", b'{\n "data": []\n}', "x.json is not a table; allowed are a list of objects"),
        ("x.json", b"[1]", "x.json, row 1 is not a JSON object; allowed are a list of objects"),
        ("x.jsonl", b'{"label": ["a"], "text": "b"}', "row 1: label must be text or a number"),
        ("x.csv", b"label,text\n,a\n", "x.csv has no row with a label and a text"),
        ("x.parquet", b"PAR1xx", "x.parquet is not a whole Parquet file: Could not open Parquet"),
        ("x.csv.zst", zstd(b"x" * 99)[:-4], "x.csv.zst is damaged (zstd: Truncated compressed"),
    ],
)
def test_what_is_not_a_labelled_table_is_named(name: str, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        labels({name: content}, name="x", fields=label_fields({name: content}))


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=re.escape("x.csv has no column kind for label; the col")):
        labels({"x.csv": b"a,b\n1,2\n"}, name="x", fields={"label": "kind", "text": "b"})


def lines(*rows: Any) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def turn(*contents: Any) -> list[dict[str, Any]]:
    roles = ("user", "assistant") * len(contents)
    return [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]


SHAREGPT = [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}]
PARTS = [{"type": "text", "text": "Q?"}]
CHATS = {
    "messages": ("c.jsonl", lines({"messages": turn("Q?", "A.")}), ["messages"]),
    "parts": ("c.json", json.dumps([{"messages": turn(PARTS, "A.")}]).encode(), ["messages"]),
    "cell": (
        "c.csv",
        pd.DataFrame({"messages": [json.dumps(turn("Q?", "A."))]}).to_csv().encode(),
        ["messages"],
    ),
    "ShareGPT": (
        "c.parquet",
        parquet(pd.DataFrame({"conversations": [SHAREGPT]})),
        ["conversations"],
    ),
    "Alpaca": (
        "c.csv",
        b"instruction,input,output\nQ?,,A.\n",
        ["instruction", "input", "output"],
    ),
    "prompt": ("c.tsv", b"prompt\tcompletion\nQ?\tA.\n", ["prompt", "completion"]),
    "TRL": (
        "c.jsonl",
        lines({"prompt": turn("Q?"), "completion": turn("Q?", "A.")[1:]}),
        ["prompt", "completion"],
    ),
}


@pytest.mark.parametrize("form", list(CHATS))
def test_an_exchange_in_any_form_gives_the_same_bytes(form: str) -> None:
    name, content, columns = CHATS[form]
    fields = chat_fields({name: content})
    assert list(fields.values()) == columns
    made = chats({name: content}, name="c", fields=fields, turns="all")["c.json"]
    assert json.loads(made) == [{"instruction": "Q?", "input": "", "output": "A."}]
    assert made == chats({"c.jsonl": CHATS["messages"][1]}, **MESSAGES)["c.json"]
    parse_instructions(made.decode(), Path("c.json"))


MESSAGES: dict[str, Any] = {"name": "c", "fields": {"messages": "messages"}, "turns": "all"}


def test_dolly_s_context_is_the_input_and_its_category_the_kind() -> None:
    row = {"instruction": "Q?", "context": "Seen.", "response": "A.", "category": "open_qa"}
    members = {"d.jsonl": lines(row)}
    made = chats(members, name="d", fields=chat_fields(members), turns="all")
    assert json.loads(made["d.json"]) == [
        {"instruction": "Q?", "input": "Seen.", "output": "A.", "kind": "open_qa"}
    ]


def test_self_instruct_has_a_row_for_each_instance() -> None:
    tasks = [
        {"instruction": "add", "instances": [{"input": "1 1", "output": "2"}, {"output": "3"}]},
        {"instruction": "none", "instances": []},
    ]
    members = {"s.jsonl": "\n".join(map(json.dumps, tasks)).encode()}
    made = chats(members, name="s", fields=chat_fields(members), turns="all")
    assert json.loads(made["s.json"]) == [
        {"instruction": "add", "input": "1 1", "output": "2"},
        {"instruction": "add", "input": "", "output": "3"},
    ]
    assert any(note.startswith("rows dropped: 1 ") for note in made.notes)


def test_a_conversation_is_kept_whole_or_cut_after_the_first_answer_on_request() -> None:
    system = {"role": "system", "content": "Be kind."}
    members = {
        "c.jsonl": lines(
            {"messages": [system, *turn("Q?", "A.", "And?", "B.", "More?")]},
            {"messages": turn("Q2?", "A2.")},
            {"messages": turn("no answer")},
            {"messages": [*turn("Q3?"), *turn("again", "A3.")]},
        )
    }
    made = chats(members, **MESSAGES)
    plain = {"instruction": "Q2?", "input": "", "output": "A2."}
    assert json.loads(made["c.json"]) == [
        {
            "instruction": "And?",
            "input": "",
            "output": "B.",
            "history": [system, *turn("Q?", "A.")],
        },
        plain,
    ]
    assert made.notes == [
        "conversations with a system message: 1",
        "conversations of several turns: 1",
        "conversations cut after the last answer: 1",
        "rows dropped: 2 with no question or no answer, or without user and assistant in turn",
    ]
    parse_instructions(made["c.json"].decode(), Path("c.json"))
    made = chats(members, **{**MESSAGES, "turns": "first"})
    assert json.loads(made["c.json"]) == [
        {"instruction": "Q?", "input": "", "output": "A.", "history": [system]},
        plain,
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            [{"prompt": turn("Q?"), "completion": turn("A.")}, {"prompt": "Q?"}],
            "c.jsonl, row 2: instruction and output must be lists of messages in every row",
        ),
        ({"messages": "[1]"}, "c.jsonl, row 1: a message must be an object, not '1'"),
        ({"messages": 3}, "c.jsonl, row 1: messages must be a list of messages, not '3'"),
        ({"messages": [{"role": "tool", "content": ""}]}, "a message has the role 'tool'; allowed"),
        ({"messages": turn([{"type": "image"}])}, "a message has a part that is no text"),
        ({"id": 7, "instruction": "Q?"}, "c.jsonl has no columns of a known form; the columns are"),
        ({"messages": []}, "c.jsonl has no row with an instruction and an answer"),
    ],
)
def test_what_is_not_a_conversation_is_named(row: Any, message: str) -> None:
    members = {"c.jsonl": lines(*row) if isinstance(row, list) else lines(row)}
    with pytest.raises(ValueError, match=re.escape(message)):
        chats(members, name="c", fields=chat_fields(members), turns="all")


def test_texts_are_files_and_rows_of_tables() -> None:
    members = {
        "a.txt": "Grüße".encode("cp1252"),
        "b.md.gz": gzip.compress("Hä".encode("utf-16")),
        "cover.jpg": b"\0",
        "d.jsonl": lines({"body": "one"}, {"body": ""}, {"body": "two"}),
        "e.txt": b" ",
    }
    assert text_fields(members) == {"text": "body"}
    made = texts(members, fields={"text": "body"})
    assert sorted(made.values()) == sorted(["Grüße".encode(), "Hä".encode(), b"one", b"two"])
    assert {"a.txt", "d_000001.txt", "d_000003.txt"} < set(made)
    assert made.notes == [
        "cp1252 (for example 'Grüße'): a.txt",
        "UTF-16: b.md.gz",
        "another form, left out: cover.jpg",
        "rows dropped: 2 with no text",
    ]
    rows = pd.DataFrame({"body": ["one", "", "two"]})
    tables = {"d.csv": rows.to_csv(index=False).encode(), "d.parquet": parquet(rows)}
    for name, content in tables.items():
        of_table = texts({name: content}, fields={"text": "body"})
        assert of_table == {key: made[key] for key in ("d_000001.txt", "d_000003.txt")}
    with pytest.raises(ValueError, match=r"d\.parquet and another file make d_000001\.txt"):
        texts(tables, fields={"text": "body"})
    with pytest.raises(ValueError, match=r"no text; allowed endings are \.txt, \.md, \.csv"):
        texts({"cover.jpg": b"\0"}, fields={"text": "text"})


def test_near_duplicates_of_earlier_texts_are_left_out_on_request() -> None:
    first = " ".join(f"word{k}" for k in range(60))
    members = {
        "a.txt": first.encode(),
        "b.md": f"{first} and more".upper().encode(),
        "c.jsonl": lines({"text": "something else"}, {"text": first}),
    }
    options: dict[str, Any] = {"fields": {"text": "text"}}
    assert len(texts(members, **options)) == 4
    made = texts(members, **options, near_duplicates=0.9)
    assert sorted(made) == ["a.txt", "c_000001.txt"]
    (note,) = made.notes
    assert note.startswith("near-duplicates left out: 2: b-")
    assert note.endswith(".txt (0.97 of a.txt), c_000002.txt (1.00 of a.txt)")
    assert len(texts(members, **options, near_duplicates=1)) == 3

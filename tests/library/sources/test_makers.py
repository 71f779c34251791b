"""How fetched files become data: each maker against what it must give back."""

import base64
import csv
import gzip
import io
import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from gptmill.sources import sms
from gptmill.sources.bpe import bpe_files
from gptmill.sources.build import rows
from gptmill.sources.exercises import Pair, choose, exercises
from gptmill.sources.questions import conversations, questions
from gptmill.sources.sms import sms_table
from gptmill.sources.text import documents, kjv_books
from gptmill.sources.wordnet import WordNet
from tests.support.tiny import tiny_bpe, tiny_tokenizer


def test_both_vocabulary_files_are_remade_from_ranks_alone(tmp_path: Path) -> None:
    merges, ids = tiny_bpe(tmp_path)
    tokenizer = tiny_tokenizer()
    ranks = {tokenizer.token_bytes(index): index for index in range(tokenizer.eot_id)}
    lines = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in ranks.items()]
    made = bpe_files({"tiny.tiktoken": "\n".join(lines).encode()})
    assert made["vocab.bpe"] == merges.read_bytes()
    assert json.loads(made["encoder.json"]) == json.loads(ids.read_text(encoding="utf-8"))


SIGNS = "\u2028a\u2029b\x85c\fd\ve\x1cf\x1dg\x1eh\u00a0i\x00"[:-1]


def test_documents_are_utf8_and_only_line_ends_change() -> None:
    made = documents(
        {
            "hamlet.txt": b"\xef\xbb\xbf\r\nTo be,  \r\nor\rnot \t\r\n\r\n ",
            "sub/old (no notes).txt.gz": gzip.compress("caf\u00e9".encode()),
            "signs.txt": SIGNS.encode(),
        }
    )
    assert made == {
        "hamlet.txt": b"\nTo be,  \nor\nnot \t\n\n ",
        "sub_old_no_notes-50256fe0f364.txt": "caf\u00e9".encode(),
        "signs.txt": SIGNS.encode(),
    }


ALIKE = [
    *("v1.2", "v1.3", "v1.txt", "v1", "v1.md", "v1.txt.gz", "V1.txt", "sub/v1.txt", "sub_v1.txt"),
    *("\U0001f600.txt", "\U0001f601.txt", "document.txt", "---", ".txt", "a-b.txt", "a_b.txt"),
    *("\u00e9.txt", "e\u0301.txt", "\u00c9.txt", "e.txt", "caf\udce9.txt", "caf\udcea.txt"),
    *("a" * 250 + ".txt", "a" * 251 + ".txt", "\u65e5" * 83 + ".txt", "b" * 200 + "/" + "c" * 200),
]


def test_every_member_has_a_short_name_of_its_own() -> None:
    made = documents({name: name.encode(errors="replace") for name in ALIKE})
    assert len({name.casefold() for name in made}) == len(ALIKE)
    assert all(len(name.encode()) < 200 and name.endswith(".txt") for name in made)
    assert {"v1.txt", "sub_v1.txt", "document.txt", "a_b.txt", "e.txt"} < set(made)
    for name in ALIKE:
        assert set(documents({name: b"a"})) < set(made), "a function of the path alone"


def test_a_document_that_is_not_utf8_is_named_with_its_line() -> None:
    with pytest.raises(ValueError, match=r"x/a\.txt is not UTF-8 text \(line 2\)"):
        documents({"x/a.txt": b"one\ntw\xf6"})


BIBLE = '''
raise SystemExit("this file is read, never run")
bible = Bible(Version.X, """
In the [very] beginning. And it was.
After that.""", {1001001: 1, 1001002: 26, 2001001: 38}, {1001001: 25, 1001002: 37, 2001001: 49},
{Book.A: {1: 2}, Book.B: {1: 1}}, {Book.A: "Genesis", Book.B: "2 Kings"},
{Book.A: "The First Book", Book.B: "The Second Book"}, False)
'''


def test_books_are_read_from_source_that_is_not_run() -> None:
    assert kjv_books({"bible.py": BIBLE.replace("raise", "#", 1).encode()}) == {
        "01_genesis.txt": b"The First Book\n\nIn the very beginning. And it was.\n",
        "02_2_kings.txt": b"The Second Book\n\nAfter that.\n",
    }


def test_swallowed_messages_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sms, "EXPECTED", {"ham": 3, "spam": 2})
    swallowing = '"Win a \x93prize\x94, ""now""\nham\tI said hi\nspam\tFREE"'
    rows = f",spam,text\n0,0,Ok lar\n1,1,{swallowing}\n2,0,Bye\n"
    (made,) = sms_table({"sms-spam.csv": rows.encode()}).values()
    assert list(csv.reader(io.StringIO(made.decode()))) == [
        ["label", "text"],
        ["ham", "Ok lar"],
        ["spam", 'Win a \u201cprize\u201d, "now"'],
        ["ham", "I said hi"],
        ["spam", "FREE"],
        ["ham", "Bye"],
    ]


def test_a_collection_of_another_size_is_refused() -> None:
    with pytest.raises(
        ValueError, match="1 messages, 1 ham and 0 spam; the original has 5574, 4827 and 747"
    ):
        sms_table({"sms-spam.csv": b",spam,text\n0,0,Ok lar\n"})


CORPUS = """categories:
- trivia
conversations:
- - What colour is
    the "sky"?
  - Blue
- - "Who said \\"no\\"?"
  - 'The president''s
    cat'
- - what colour is the "sky"?
  - Green
- - one
  - two
  - three
"""


def test_conversations_read_as_yaml_reads_them() -> None:
    assert list(conversations(CORPUS)) == YAML(typ="safe").load(CORPUS)["conversations"]


def test_questions_are_distinct_and_of_two_turns() -> None:
    rows = json.loads(questions({"a.yml": CORPUS.encode()})["instructions.json"])
    assert [row["output"] for row in rows] == ["Blue", "The president's cat"]
    assert rows[0] == {
        "instruction": 'What colour is the "sky"?',
        "input": "",
        "output": "Blue",
        "kind": "question",
        "key": "Blue",
    }


def test_rows_get_the_name_under_which_sources_join_and_are_checked() -> None:
    content = b'[{"instruction": "Say yes.", "output": "Yes."}]'
    assert rows({"mine.json": content}) == {"instructions.json": content}
    with pytest.raises(ValueError, match=r"mine\.json, row 1 has no output"):
        rows({"mine.json": b'[{"instruction": "Say yes."}]'})
    with pytest.raises(ValueError, match=r"rows come from one file, not from a\.json, b\.json"):
        rows({"b.json": content, "a.json": content})


def test_yaml_beyond_plain_texts_is_refused() -> None:
    with pytest.raises(ValueError, match="only plain and quoted"):
        list(conversations("conversations:\n- - code\n  - |\n    x = 1\n"))


NOUNS = {"dog": "animal", "cat": "animal", "hen": "animal", "oak": "plant", "elm": "plant"}
CLASSES = {"noun": ("n", 1), "verb": ("v", 2), "adj": ("a", 3), "adv": ("r", 4)}


def tiny_wordnet() -> dict[str, bytes]:
    """Return WordNet's files for a few words of each class; `hot` and `cold` are opposites."""
    words = {
        "noun": [*NOUNS, "warmth"],
        "verb": ["decide", "persuade", "become"],
        "adj": ["hot", "cold", "able"],
        "adv": ["quickly", "rapidly", "soon"],
    }
    names = ["05 noun.animal 1", "20 noun.plant 1", "07 noun.attribute 1", "29 verb.body 2"]
    names += ["00 adj.all 3", "02 adv.all 4"]
    files = {"lexnames": "\n".join(names), "index.sense": ""}
    places = {"animal": "05", "plant": "20"}
    defaults = {"noun": "07", "verb": "29", "adj": "00", "adv": "02"}
    for name, members in words.items():
        letter, number = CLASSES[name]
        lines = ["  1 a licence"]
        for at, word in enumerate(members, start=1):
            file = places.get(NOUNS.get(word, ""), defaults[name])
            other = {"hot": 2, "cold": 1}.get(word)
            pointers = f"001 ! {other:08d} a 0101" if other else "000"
            gloss = f'what one calls so here; "he said {word} to his friend"'
            same = "2 rapidly 0" if word == "quickly" else "1"
            size, *more = same.split(" ", 1)
            synonyms = " ".join([word, "0", *more])
            lines.append(f"{at:08d} {file} {letter} {size:0>2} {synonyms} {pointers} | {gloss}  ")
            key = 1 if word == "rapidly" else at
            files["index.sense"] += f"{word}%{number}:00:00:: {key:08d} 1 {9 - at}\n"
        files[f"data.{name}"] = "\n".join(lines) + "\n"
    return {f"dict/{name}": text.encode() for name, text in files.items()}


ROWS = {"word class": 8, "category": 2, "antonym": 1, "synonym": 1, "definition": 4, "sentence": 3}


def rows_of(seed: int = 1, **rows: int) -> list[dict[str, str]]:
    """Make exercises from the tiny WordNet."""
    chosen = {name.replace("_", " "): count for name, count in rows.items()} or ROWS
    made = exercises(tiny_wordnet(), seed=seed, rows=chosen)
    read: list[dict[str, str]] = json.loads(made["instructions.json"])
    return read


def test_wordnet_is_read_with_its_senses_and_opposites() -> None:
    wordnet = WordNet(tiny_wordnet())
    hot = wordnet.first("hot")
    assert hot is not None
    assert (hot.word_class, hot.file) == ("adjective", "adj.all")
    assert (hot.definition, hot.examples) == (
        "what one calls so here",
        ("he said hot to his friend",),
    )
    assert wordnet.opposite(hot, "hot") == ["cold"]
    assert wordnet.first("hot", "noun") is None


def test_a_cut_data_file_reads_like_a_whole_one() -> None:
    files = tiny_wordnet()
    lines = files.pop("dict/data.noun").splitlines(keepends=True)
    files["dict/data.noun1"], files["dict/data.noun2"] = b"".join(lines[:3]), b"".join(lines[3:])
    assert WordNet(files).synsets == WordNet(tiny_wordnet()).synsets


def test_exercises_ask_for_what_wordnet_says() -> None:
    rows = rows_of()
    keys = {
        (row["kind"], row["input"] or row["instruction"].split("'")[1]): row["key"] for row in rows
    }
    assert len(keys) == sum(ROWS.values())
    assert keys.get(("antonym", "hot")) == "cold" or keys["antonym", "cold"] == "hot"
    assert keys["synonym", "quickly"] == "rapidly"
    said = [row["output"] for row in rows if row["kind"] == "sentence"]
    assert all(text.startswith("He said ") and text.endswith(" to his friend.") for text in said)
    classes = [row["key"] for row in rows if row["kind"] == "word class"]
    assert {name: classes.count(name) for name in classes} == dict.fromkeys(
        ("noun", "verb", "adjective", "adverb"), 2
    )
    for row in rows:
        assert row["key"] in row["output"]
        assert row["output"].endswith(".")


def test_a_row_depends_on_its_word_and_the_seed_only() -> None:
    before, again, other = rows_of(), rows_of(), rows_of(seed=2)
    assert before == again != other
    more = {row["input"] + row["instruction"]: row for row in rows_of(category=2, antonym=1)}
    for row in before:
        if row["kind"] in ("category", "antonym"):
            assert more[row["input"] + row["instruction"]] == row


def test_groups_are_of_one_size() -> None:
    pairs = [Pair(f"a{n}", "x", "x") for n in range(9)] + [
        Pair(f"b{n}", "y", "y") for n in range(3)
    ]
    chosen = choose(pairs, 4, seed=1, kind="k")
    assert sorted(pair.group for pair in chosen) == ["x", "x", "y", "y"]
    assert all(pair.word in ("a0", "a1", "a2", "b0", "b1", "b2") for pair in chosen)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"rhyme": 3}, "unknown kind of exercise 'rhyme'; the kinds are word class, category"),
        (
            {"word class": 400},
            "400 rows of 'word class' were requested; the number must be a multiple of 4",
        ),
        ({"word class": 3}, "multiple of 4"),
        ({"category": 6}, "multiple of 2 up to 4"),
        ({"synonym": 2}, "multiple of 1 up to 1"),
        ({"antonym": 2}, "multiple of 1 up to 1"),
        ({"word class": -4}, "whole numbers"),
    ],
)
def test_rows_that_cannot_be_made_are_refused(rows: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        exercises(tiny_wordnet(), seed=1, rows=rows)

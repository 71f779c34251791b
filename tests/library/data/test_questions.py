"""The reader of questions, and our own set."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gptmill.data.questions import Question, read_questions
from gptmill.evaluation.checks import passes
from gptmill.evaluation.overlap import normalise
from tasks.project.environment import ROOT

SET = ROOT / "sets" / "general.jsonl"
ROW: dict[str, Any] = {
    "id": "a-1",
    "kind": "a",
    "messages": [{"role": "user", "content": "Name a bird."}],
    "reference": "An owl is a bird.",
    "check": {"contains_any": ["owl"]},
}
USER, REPLY = ({"role": role, "content": "x"} for role in ("user", "assistant"))


def test_a_row_is_read(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(ROW) + "\n\n", encoding="utf-8")
    (question,) = read_questions(path)
    assert question.chat == ROW["messages"]
    assert question.check is not None
    assert question.check.rules() == {"contains_any": ("owl",)}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("[", "line 1 is not UTF-8 JSON"),
        ("3", "line 1: the line: "),
        ('{"id": "1", "id": "2"}', "line 1 is not UTF-8 JSON: an object has the key 'id' twice"),
        ({"reference": None}, "line 1: reference: input should be a valid string, not None"),
        ({"reference": " "}, "line 1: reference must have text"),
        ({"answer": "x"}, "line 1: answer is unknown; allowed are id, kind, messages, reference"),
        ({"check": {}}, "line 1: check must have a rule, one of contains_any, contains_all"),
        ({"check": {"item": 3}}, "line 1: check.item is unknown; allowed are contains_any,"),
        ({"check": {"items": "3"}}, "check.items: input should be a valid integer, not '3'"),
        ({"check": {"matches": "("}}, "check.matches must be a regular expression (missing )"),
        ({"check": {"number": float("nan")}}, "line 1 is not UTF-8 JSON: NaN is no number of JSON"),
        ({"messages": []}, "messages must be user and assistant in turn, with the user first"),
        ({"messages": [USER, REPLY]}, "the roles are user, assistant"),
        ({"messages": [{**USER, "role": "tool"}]}, "messages.0.role: input should be 'system',"),
        ("", "has no question"),
    ],
)
def test_a_fault_is_told_with_the_line_and_the_field(
    tmp_path: Path, line: str | dict[str, Any], fault: str
) -> None:
    path = tmp_path / "own.jsonl"
    text = line if isinstance(line, str) else json.dumps({**ROW, **line})
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"own\.jsonl") as error:
        read_questions(path)
    assert fault in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_fields_duplicates_and_other_encodings_are_told(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    contents = {
        "kind is missing; a question has id, kind": json.dumps({"id": "1"}).encode(),
        "questions 1 and 2 have the same id": (json.dumps(ROW) + "\n").encode() * 2,
        "have the same messages": "\n".join(json.dumps({**ROW, "id": k}) for k in "12").encode(),
        "is not UTF-8 text": b'{"id": "\xff"}',
    }
    for fault, content in contents.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=fault):
            read_questions(path)
    with pytest.raises(ValueError, match="does not exist"):
        read_questions(tmp_path / "none.jsonl")


def test_our_set_is_of_many_kinds_and_small() -> None:
    questions = read_questions(SET)
    kinds = {question.kind for question in questions}
    assert len(questions) >= 180
    assert SET.stat().st_size < 120_000
    assert all(sum(question.kind == kind for question in questions) >= 10 for kind in kinds)
    assert len(kinds) >= 7
    assert any(len(question.messages) > 2 for question in questions)
    for kind in kinds:
        lengths = [len(row.reference.split()) for row in questions if row.kind == kind]
        assert 7 <= sum(lengths) / len(lengths) <= 25, kind


def test_every_reference_of_our_set_passes_and_no_prompt_does() -> None:
    for question in read_questions(SET):
        assert passes(question, question.reference) in (True, None), question.id
        assert not passes(question, question.prompt), question.id
        assert not passes(question, ""), question.id


def test_no_training_row_has_a_prompt_or_eight_words_of_our_set() -> None:
    questions = read_questions(SET)
    prompts = {" ".join(normalise(question.prompt)) for question in questions}
    held_out = {gram for question in questions for text in texts(question) for gram in grams(text)}
    for name, prompt, row in training_rows():
        assert " ".join(normalise(prompt)) not in prompts, (name, prompt)
        for text in (prompt, *row):
            assert held_out.isdisjoint(grams(text)), (name, text)


def texts(question: Question) -> list[str]:
    return [*(message.content for message in question.messages), question.reference]


def grams(text: str) -> set[tuple[str, ...]]:
    words = normalise(text)
    return {tuple(words[k : k + 8]) for k in range(len(words) - 7)}


def training_rows() -> Iterator[tuple[str, str, list[str]]]:
    """Yield file, prompt and all texts of every training row in the tree."""
    files = [*(ROOT / "data" / "instructions").glob("*.json"), *(ROOT / "sets").glob("*.json")]
    for path in sorted(files):
        for row in json.loads(path.read_text(encoding="utf-8")):
            prompt = f"{row['instruction']} {row.get('input', '')}"
            yield path.name, prompt, [row["instruction"], row.get("input", ""), row["output"]]
    for path in sorted((ROOT / "sets").glob("*.jsonl")):
        if path != SET:
            for question in read_questions(path):
                yield path.name, question.prompt, texts(question)

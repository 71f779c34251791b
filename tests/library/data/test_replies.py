"""Our own training rows for the assistant: right in all that a program can check."""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from gptmill.data.near_duplicates import earlier_twins, jaccard, shingles, words
from gptmill.data.questions import read_questions
from gptmill.data.row_files import read_instructions
from gptmill.evaluation.checks import NUMBER_WORDS, count_items, final_number
from gptmill.evaluation.overlap import names
from tasks.project.environment import ROOT

SET, GENERAL = ROOT / "sets" / "replies.json", ROOT / "sets" / "general.jsonl"
COUNT = "|".join(sorted(NUMBER_WORDS, key=len, reverse=True))
WORD_LIMITS: dict[str, Callable[[int, int], bool]] = {
    rf"(?:at most|no more than) ({COUNT}) words": lambda words, limit: words <= limit,
    rf"(?:fewer than|under) ({COUNT}) words": lambda words, limit: words < limit,
    rf"({COUNT}) words or fewer": lambda words, limit: words <= limit,
    rf"(?:exactly|in) ({COUNT}) words(?! or fewer)": lambda words, limit: words == limit,
    r"(one)[ -]word|single word": lambda words, limit: words == 1,
}


@pytest.fixture(scope="module")
def rows() -> list[dict[Any, Any]]:
    return read_instructions(SET).to_dict("records")


def prompt(row: dict[Any, Any]) -> str:
    return f"{row['instruction']} {row['input']}"


def test_the_kinds_have_equal_shares_and_the_answers_the_length_of_the_general_set(
    rows: list[dict[Any, Any]],
) -> None:
    kinds = Counter(row["kind"] for row in rows)
    assert len(rows) >= 600
    assert len(kinds) >= 12
    assert max(kinds.values()) <= 1.25 * min(kinds.values())
    assert SET.stat().st_size < 300_000
    lengths = [len(row["output"].split()) for row in rows]
    references = [len(row.reference.split()) for row in read_questions(GENERAL)]
    ratio = sum(lengths) / len(lengths) * len(references) / sum(references)
    assert 0.9 < ratio < 1.1
    assert max(lengths) <= 60


def test_no_prompt_is_nearly_a_different_prompt_or_one_of_the_general_set(
    rows: list[dict[Any, Any]],
) -> None:
    sets = [shingles(words(prompt(row))) for row in rows]
    assert not any(earlier_twins(sets, 0.5))
    for question in read_questions(GENERAL):
        asked = shingles(words(question.prompt))
        assert max(jaccard(asked, own) for own in sets) < 0.45, question.id


def test_every_answer_names_its_key_and_every_sum_is_the_key(rows: list[dict[Any, Any]]) -> None:
    for row in rows:
        assert not row["key"] or names(row["output"], row["key"], ()), row
        if row["kind"] == "sum" and row["key"].isdigit() and "smaller" not in row["instruction"]:
            assert final_number(row["output"], prompt(row)) == int(row["key"]), row


def test_lists_and_limits_of_words_are_kept(rows: list[dict[Any, Any]]) -> None:
    for row in rows:
        asked, n_words = row["instruction"].lower(), len(row["output"].split())
        number = re.search(rf"\b({COUNT})\b", asked)
        if row["kind"] == "list" and number:
            assert count_items(row["output"]) == NUMBER_WORDS[number[1]], row
        for pattern, kept in WORD_LIMITS.items():
            limit = re.search(pattern, asked)
            if limit:
                assert kept(n_words, NUMBER_WORDS[limit[1] or "one"]), row

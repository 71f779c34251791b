"""Scores of answers against counting by hand."""

import math

import pandas as pd
import pytest

from gptmill.evaluation.assistant import (
    closed_answers,
    most_frequent_answers,
    score_assistant,
)
from gptmill.evaluation.estimates import wilson
from gptmill.evaluation.overlap import exact_match, normalise, token_f1


@pytest.mark.parametrize(
    ("answer", "expected", "same"),
    [
        ("The Answer.", "the answer", True),
        ("  the\n answer!", "the answer", True),
        ("\u201cthe answer\u201d", "'The' answer", True),
        ("the answers", "the answer", False),
        ("answer the", "the answer", False),
        ("-5", "5", False),
        ("C++", "C", False),
        ("well-known", "well known", False),
        ("", "the answer", False),
        ("Stra\u00dfe", "STRASSE", True),
    ],
)
def test_exact_match_overlooks_case_edges_and_space(answer: str, expected: str, same: bool) -> None:
    assert exact_match(answer, expected) is same


def test_token_f1_counts_repeated_words_once_each() -> None:
    assert token_f1("a cat sat", "the cat sat down") == pytest.approx(2 * 2 / (3 + 4))
    assert token_f1("cat cat cat", "cat") == pytest.approx(2 * 1 / (3 + 1))
    assert token_f1("dog", "cat") == 0
    assert token_f1("...", "cat") == 0
    assert token_f1("...", "!") == 1
    assert normalise("Don't stop -- now!") == ["don't", "stop", "--", "now"]


def test_most_frequent_answer_is_found_by_kind_with_ties_broken_by_the_alphabet() -> None:
    train = pd.DataFrame(
        [("a", "Yes."), ("a", "no"), ("a", "yes"), ("b", "two"), ("b", "one")],
        columns=["kind", "output"],
    )
    assert most_frequent_answers(train) == {"a": "Yes.", "b": "one"}


def test_assistant_is_scored_by_kind_beside_the_most_frequent_answer() -> None:
    train = pd.DataFrame({"kind": ["a"] * 3 + ["b"], "output": ["yes", "yes", "no", "blue sky"]})
    train.loc[4] = ["few", "x"]
    answers = pd.DataFrame(
        [
            *[("a", "yes", "Yes."), ("a", "no", "No"), ("a", "no", "no!")] * 10,
            ("b", "blue", "red"),
            ("new", "what", "what"),
            ("few", "x", "x"),
            ("few", "y", "y"),
        ],
        columns=["kind", "output", "answer"],
    ).assign(before="no answer")
    table = score_assistant(answers, train).set_index("kind")
    assert list(table.index) == ["a", "b", "few", "new", "all"]
    assert table["rows"].to_dict() == {"a": 30, "b": 1, "few": 2, "new": 1, "all": 34}
    assert table.loc["a", "exact_match"] == 1
    assert table.loc["a", "baseline_exact_match"] == pytest.approx(1 / 3)
    assert table.loc["a", "baseline_exact_match_high"] == pytest.approx(wilson(10, 30).high)
    assert table.loc["b", "baseline_token_f1"] == pytest.approx(2 / 3)
    assert table.loc["b", "token_f1"] == 0
    assert table.loc["all", "exact_match"] == pytest.approx(33 / 34)
    assert table.loc["all", "baseline_exact_match"] == pytest.approx(11 / 34)
    assert table["beats"].to_dict() == {"a": 1, "b": 0, "few": 1, "new": 1, "all": 1}
    assert table["beats_interval"].to_dict() == {"a": 1, "b": 0, "few": 1, "new": 1, "all": 1}


def test_stop_rate_length_and_repetition_stand_beside_the_base_s() -> None:
    train = pd.DataFrame({"kind": ["a"], "output": ["x"]})
    rows = {
        "kind": ["a"] * 3,
        "output": ["x y", "x", "z"],
        "answer": ["a b c d a b c d", "x", ""],
        "stopped": [False, True, True],
        "before": ["one two three", "x", "x"],
    }
    row = score_assistant(pd.DataFrame(rows), train).iloc[-1]
    assert (row["stopped"], row["stopped_low"]) == (2 / 3, wilson(2, 3).low)
    assert row["length_ratio"] == 9 / 4
    assert row["words"] == 9 / 3
    assert row["repetition"] == pytest.approx((1 - 4 / 5) / 3)
    assert (row["before_length_ratio"], row["before_repetition"]) == (5 / 4, 0)
    assert math.isnan(row["before_stopped"])  # not recorded


def test_a_lead_within_the_baselines_interval_is_told_apart() -> None:
    train = pd.DataFrame({"kind": ["a"], "output": ["x"]})
    expected = ["x"] * 2 + ["y"] * 3
    rows = {"kind": ["a"] * 5, "output": expected, "answer": ["x"] * 2 + ["y"] * 1 + ["z"] * 2}
    rows["before"] = [""] * 5
    row = score_assistant(pd.DataFrame(rows), train).iloc[0]
    assert (row["exact_match"], row["baseline_exact_match"]) == (0.6, 0.4)
    assert row["beats"]
    assert not row["beats_interval"]


def test_a_kind_is_closed_where_few_answers_are_used_often() -> None:
    rows = [("word class", word) for word in ("Noun", "verb") * 5]
    rows += [("antonym", word) for word in ("hot", "cold", "big")]
    train = pd.DataFrame(rows, columns=["kind", "output"])
    assert closed_answers(train) == {"antonym": frozenset(), "word class": {"noun", "verb"}}
    answers = pd.DataFrame({"kind": ["word class"] * 3, "output": ["noun", "verb", "a " * 9]})
    answers["answer"] = ["It is a noun.", "noun, verb", "a"]
    row = score_assistant(answers.assign(before="noun"), train).iloc[-1]
    assert (row["named_rows"], row["named"], row["before_named"]) == (2, 0.5, 0.5)
    assert row["exact_match"] == 0

"""Scores of general answers against torch, sklearn and counting by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import precision_recall_fscore_support
from sklearn.preprocessing import MultiLabelBinarizer

from gptmill.checkpoint.checkpoint import save_causal_lm
from gptmill.data.questions import Check, Message, Question
from gptmill.evaluation.answering import Answer, answer_questions, reference_nats
from gptmill.evaluation.general import GENERAL, answer_table, score_answers, score_models
from gptmill.evaluation.overlap import Overlap, names, normalise, repetition
from gptmill.evaluation.paired import compare
from gptmill.finetuning.instructions import default_template
from tests.support.tiny import tiny_gpt, tiny_tokenizer


def question(number: int, kind: str, reference: str, word: str | None) -> Question:
    return Question(
        id=str(number),
        kind=kind,
        messages=(Message(role="user", content=f"Ask {number}"),),
        reference=reference,
        check=None if word is None else Check(contains_any=(word,)),
    )


QUESTIONS = [
    question(1, "b", "A cat sleeps.", "cat"),
    question(2, "a", "Red and blue.", "red"),
    question(3, "a", "Seven days.", None),
]
BASE = [Answer("A cat", True, 6.0, 4), Answer("green", False, 8.0, 4), Answer("Seven", True, 2, 2)]
BETTER = [Answer("cat", True, 3.0, 4), Answer("Red", True, 4.0, 4), Answer("Seven", True, 1, 2)]


def test_overlap_is_sklearn_s_on_numbered_words() -> None:
    pairs = [("cat sat cat", "cat sat down"), ("red", "blue"), ("Five big dogs!", "five dogs")]
    for pair in pairs:
        words = map(normalise, pair)
        counted = [{(word, row[:k].count(word)) for k, word in enumerate(row)} for row in words]
        answer, expected = MultiLabelBinarizer().fit_transform(counted)
        *reference, _ = precision_recall_fscore_support(
            np.array([expected]), np.array([answer]), average="samples", zero_division=0
        )
        overlap = Overlap.of(*pair)
        assert [overlap.precision, overlap.recall, overlap.f1] == pytest.approx(reference)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("verb", True),
        ("The word 'run' is a verb.", True),
        ("Verb: it names an action that a person can do.", True),
        ("noun, verb, adjective, adverb", False),
        ("It is a noun or a verb.", False),
        ("adverb", False),
        ("", False),
    ],
)
def test_a_word_in_a_sentence_counts_and_a_list_of_all_words_does_not(
    answer: str, right: bool
) -> None:
    assert names(answer, "verb", {"noun", "verb", "adjective", "adverb"}) is right


def test_a_list_of_alternatives_does_not_count_in_an_open_kind() -> None:
    assert names("The opposite is cold, which means without heat.", "cold", ())
    assert not names("warm, cool, cold, icy, wet", "cold", ())
    assert not names("- warm\n- cool\n- cold\n- icy", "cold", ())


def test_scores_are_those_counted_by_hand() -> None:
    scores = {"base": score_answers(QUESTIONS, BASE), "assistant": score_answers(QUESTIONS, BETTER)}
    table = score_models(scores, resamples=50, seed=1).set_index(["model", "kind"])
    total = table.loc[("base", "all")]
    assert total["rows"] == 3
    assert total["passed"] == 1 / 2  # of two questions with a check
    assert total["loss"] == pytest.approx(16 / 10)
    assert total["stopped"] == pytest.approx(2 / 3)
    assert total["length_ratio"] == pytest.approx(4 / 8)
    assert total["loss_low"] <= total["loss"] <= total["loss_high"]
    assert table.loc[("assistant", "a"), "passed"] == 1
    gain = compare(scores, ("assistant", "base"), GENERAL, resamples=50, seed=1).set_index("kind")
    assert gain.loc["all", "loss"] == pytest.approx((8 - 16) / 10)
    assert gain.loc["all", "passed"] == pytest.approx(1 / 2)
    assert not gain["loss_worse"].any()
    back = compare(scores, ("base", "assistant"), GENERAL, resamples=50, seed=1).set_index("kind")
    assert back.loc["all", "loss_worse"]
    shown = answer_table(QUESTIONS, BASE, BETTER, scores)
    assert shown["base_passed"].tolist() == [1, 0, pd.NA]
    assert shown["base_stopped"].tolist() == [int(answer.stopped) for answer in BASE]
    assert shown["base_nats"].tolist() == [answer.nats for answer in BASE]


def test_a_paired_interval_is_narrower_than_the_models_intervals() -> None:
    rng = np.random.default_rng(3)
    hard = rng.normal(2, 1, 400)
    frames = {
        name: pd.DataFrame({"kind": "a", "nats": hard + rng.normal(shift, 0.1, 400), "tokens": 1})
        for name, shift in (("new", 0.02), ("old", 0.0))
    }
    row = compare(frames, ("new", "old"), {"loss": GENERAL["loss"]}, resamples=1000, seed=1).iloc[
        -1
    ]
    difference = (frames["new"]["nats"] - frames["old"]["nats"]).to_numpy()
    half = 1.96 * difference.std(ddof=1) / np.sqrt(400)
    assert row["loss"] == pytest.approx(difference.mean())
    assert row["loss_high"] - row["loss_low"] == pytest.approx(2 * half, rel=0.15)


def test_losses_of_references_equal_torch_row_by_row() -> None:
    model, end = tiny_gpt().eval(), tiny_tokenizer().eot_id
    rng = np.random.default_rng(1)
    rows = [
        ([*rng.integers(0, 300, size).tolist(), end], prompt)
        for size, prompt in ((9, 4), (20, 15), (5, 1), (60, 50), (40, 2))
    ]
    for (ids, prompt), (nats, count) in zip(rows, reference_nats(model, rows), strict=True):
        last = torch.tensor(ids[-33:])  # the context is 32
        first = max(1, prompt - max(0, len(ids) - 33))
        with torch.no_grad():
            logits = model(last[None, :-1])[0]
        expected = F.cross_entropy(logits[first - 1 :], last[first:], reduction="sum").item()
        assert count == len(last) - first
        assert nats == pytest.approx(expected, rel=1e-5)


def test_a_model_without_a_chat_template_answers_system_messages_too(tmp_path: Path) -> None:
    save_causal_lm(tmp_path / "model", tiny_gpt(), tiny_tokenizer())
    system = Message(role="system", content="Be brief.")
    asked = QUESTIONS[0].model_copy(update={"messages": (system, *QUESTIONS[0].messages)})
    template = default_template(tiny_tokenizer())
    assert template.accepted(asked.chat) == [{"role": "user", "content": "Be brief.\n\nAsk 1"}]
    answers = answer_questions(
        tmp_path / "model", [asked, *QUESTIONS], max_new_tokens=4, device="cpu"
    )
    assert len(answers) == 4
    assert all(answer.tokens > 1 and answer.nats > 0 for answer in answers)


def test_repetition_is_the_share_of_repeated_runs_of_four_words() -> None:
    assert repetition(["a", "b", "c"]) == repetition(["a", "b", "c", "d", "e", "f"]) == 0
    assert repetition(["a", "b", "c", "d", "a", "b", "c", "d"]) == pytest.approx(1 / 5)
    assert repetition(["a"] * 13) == pytest.approx(9 / 10)

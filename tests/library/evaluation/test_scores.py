"""Scores against scikit-learn, torch and counting by hand."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics

from gptmill.evaluation.assistant import (
    exact_match,
    most_frequent_answers,
    normalise,
    score_assistant,
    token_f1,
)
from gptmill.evaluation.classifier import (
    bag_of_words_probabilities,
    confusion,
    majority_probabilities,
    roc_curve,
    score_classifier,
)
from gptmill.evaluation.estimates import wilson
from gptmill.evaluation.language_model import (
    bits_per_byte,
    cut,
    token_nats,
    token_sizes,
)
from gptmill.model.objectives import IGNORE
from tests.support.tiny import TINY_TEXT, tiny_gpt, tiny_tokenizer


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17: 857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_equals_published_values(
    right: int, total: int, low: float, high: float
) -> None:
    found = wilson(right, total)
    assert found.value == right / total
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)


# ---- language models


@pytest.mark.parametrize("count", [2, 8, 9, 10, 61])
def test_windows_make_each_id_but_the_first_a_target_once(count: int) -> None:
    ids = np.arange(100, 100 + count, dtype=np.uint16)
    inputs, targets = cut(ids, length=8, limit=0)
    counted = targets != IGNORE
    assert inputs.shape == targets.shape
    np.testing.assert_array_equal(targets[counted], ids[1:])
    np.testing.assert_array_equal(inputs[counted], ids[:-1])


def test_a_limit_keeps_windows_from_start_to_end() -> None:
    ids = np.arange(1000)
    inputs, targets = cut(ids, length=10, limit=5)
    assert inputs[:, 0].tolist() == [0, 240, 490, 740, 990]
    assert (targets != IGNORE).sum() == 49
    assert len(cut(ids, length=10, limit=500)[0]) == 100


def test_nats_equal_torch_cross_entropy_whatever_the_batch_size() -> None:
    model = tiny_gpt()
    ids = np.random.default_rng(0).integers(0, 317, size=75)
    inputs, targets = cut(ids, length=32, limit=0)
    found = [token_nats(model, inputs, targets, batch_size=n, device="cpu") for n in (1, 2, 5)]
    expected = []
    for start in (0, 32, 64):
        window = torch.from_numpy(ids[start : start + 33])
        with torch.no_grad():
            logits = model(window[None, :-1])[0]
        expected.append(F.cross_entropy(logits, window[1:], reduction="none").numpy())
    for nats in found:
        np.testing.assert_allclose(nats, np.concatenate(expected), rtol=2e-5)


def test_bits_per_byte_of_a_fair_coin_a_byte() -> None:
    assert bits_per_byte(math.log(2), tokens=100, size=100) == pytest.approx(1.0)
    assert bits_per_byte(math.log(256), tokens=50, size=200) == pytest.approx(2.0)


def test_token_sizes_add_up_to_the_bytes_of_the_text() -> None:
    tokenizer = tiny_tokenizer()
    sizes = token_sizes(tokenizer)
    text = TINY_TEXT + "caf\u00e9 \u65e5\u672c"
    assert len(sizes) == tokenizer.n_vocab
    assert sizes[[*tokenizer.encode(text), tokenizer.eot_id]].sum() == len(text.encode())


# ---- classifiers


@pytest.fixture(params=[2, 4])
def classified(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    """Actual classes and probabilities of a fair classifier, rounded so that there are ties."""
    classes = request.param
    generator = np.random.default_rng(classes)
    actual = np.sort(generator.choice(classes, size=150, p=generator.dirichlet([5] * classes)))
    scores = generator.normal(size=(150, classes)).round(1) + np.eye(classes)[actual]
    exponents = np.exp(scores)
    return actual, exponents / exponents.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("positive", [0, 1])
def test_scores_of_one_class_equal_sklearn(
    classified: tuple[np.ndarray, np.ndarray], positive: int
) -> None:
    actual, probabilities = classified
    found = score_classifier(actual, probabilities, positive=positive, resamples=0, seed=0)
    is_it, said = actual == positive, probabilities.argmax(axis=1) == positive
    assert found.accuracy.value == metrics.accuracy_score(actual, probabilities.argmax(axis=1))
    assert found.precision == pytest.approx(metrics.precision_score(is_it, said))
    assert found.recall == pytest.approx(metrics.recall_score(is_it, said))
    assert found.f1.value == pytest.approx(metrics.f1_score(is_it, said))
    expected = metrics.roc_auc_score(is_it, probabilities[:, positive])
    assert found.auc.value == pytest.approx(expected)


def test_scores_of_all_classes_equal_sklearns_macro_averages(
    classified: tuple[np.ndarray, np.ndarray],
) -> None:
    actual, probabilities = classified
    found = score_classifier(actual, probabilities, positive=None, resamples=0, seed=0)
    predicted = probabilities.argmax(axis=1)
    for value, scorer in [
        (found.precision, metrics.precision_score),
        (found.recall, metrics.recall_score),
        (found.f1.value, metrics.f1_score),
    ]:
        assert value == pytest.approx(scorer(actual, predicted, average="macro"))
    one_by_one = [
        metrics.roc_auc_score(actual == k, column) for k, column in enumerate(probabilities.T)
    ]
    assert found.auc.value == pytest.approx(np.mean(one_by_one))
    if probabilities.shape[1] > 2:
        expected = metrics.roc_auc_score(actual, probabilities, multi_class="ovr", average="macro")
        assert found.auc.value == pytest.approx(expected)


def test_bootstrap_equals_scoring_the_drawn_rows_with_sklearn(
    classified: tuple[np.ndarray, np.ndarray],
) -> None:
    actual, probabilities = classified
    rows = len(actual)
    found = score_classifier(actual, probabilities, positive=0, resamples=60, seed=9)
    f1, auc = [], []
    shares = np.full(rows, 1 / rows)
    for counts in np.random.default_rng(9).multinomial(rows, shares, size=60):
        drawn = np.repeat(np.arange(rows), counts)
        is_it, said = actual[drawn] == 0, probabilities[drawn].argmax(axis=1) == 0
        f1.append(metrics.f1_score(is_it, said))
        auc.append(metrics.roc_auc_score(is_it, probabilities[drawn, 0]))
    for estimate, values in [(found.f1, f1), (found.auc, auc)]:
        expected = np.quantile(values, [0.025, 0.975])
        assert [estimate.low, estimate.high] == pytest.approx(expected.tolist())
    again = score_classifier(actual, probabilities, positive=0, resamples=60, seed=9)
    assert again == found


def test_resamples_without_a_class_are_left_out_of_its_interval() -> None:
    actual = np.array([0, 0, 0, 1])
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
    found = score_classifier(actual, probabilities, positive=1, resamples=50, seed=0)
    assert 0 <= found.auc.low <= found.auc.value <= found.auc.high <= 1


def test_confusion_and_roc_equal_sklearn(classified: tuple[np.ndarray, np.ndarray]) -> None:
    actual, probabilities = classified
    predicted = probabilities.argmax(axis=1)
    classes = probabilities.shape[1]
    expected = metrics.confusion_matrix(actual, predicted, labels=range(classes))
    np.testing.assert_array_equal(confusion(actual, predicted, classes), expected)
    curve = roc_curve(actual == 1, probabilities[:, 1])
    false, true, _ = metrics.roc_curve(actual == 1, probabilities[:, 1], drop_intermediate=False)
    np.testing.assert_allclose(curve["false_positive_rate"], false)
    np.testing.assert_allclose(curve["true_positive_rate"], true)


def test_majority_baseline_is_right_on_the_commonest_class_and_ranks_nothing() -> None:
    train, actual = np.array([0] * 9 + [1]), np.array([0] * 7 + [1] * 3)
    probabilities = majority_probabilities(train, len(actual), 2)
    np.testing.assert_allclose(probabilities[0], [0.9, 0.1])
    found = score_classifier(actual, probabilities, positive=1, resamples=20, seed=0)
    assert (found.accuracy.value, found.f1.value, found.auc.value) == (0.7, 0.0, 0.5)


def test_bag_of_words_learns_the_words_of_each_class() -> None:
    train = ["free prize now", "claim your prize", "see you at lunch", "lunch at home"] * 5
    labels = np.array([1, 1, 0, 0] * 5)
    found = bag_of_words_probabilities(train, labels, ["prize, claim it", "home for lunch"])
    assert found.shape == (2, 2)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert found.argmax(axis=1).tolist() == [1, 0]


# ---- assistants


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


def test_a_lead_within_the_baselines_interval_is_told_apart() -> None:
    train = pd.DataFrame({"kind": ["a"], "output": ["x"]})
    expected = ["x"] * 2 + ["y"] * 3
    rows = {"kind": ["a"] * 5, "output": expected, "answer": ["x"] * 2 + ["y"] * 1 + ["z"] * 2}
    rows["before"] = [""] * 5
    row = score_assistant(pd.DataFrame(rows), train).iloc[0]
    assert (row["exact_match"], row["baseline_exact_match"]) == (0.6, 0.4)
    assert row["beats"]
    assert not row["beats_interval"]

"""Scores of classifiers against scikit-learn."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from gptmill.evaluation.classifier import (
    bag_of_words_probabilities,
    confusion,
    f1_difference,
    majority_probabilities,
    roc_curve,
    score_classifier,
)


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


def test_the_interval_of_an_f1_difference_equals_scipys_paired_bootstrap() -> None:
    generator = np.random.default_rng(4)
    actual = generator.integers(2, size=200)
    ours, theirs = (
        np.exp(generator.normal(size=(200, 2)) + strength * np.eye(2)[actual])
        for strength in (3.0, 2.0)
    )

    def f1(rows: np.ndarray, probabilities: np.ndarray) -> float:
        said = probabilities.argmax(axis=1)[rows]
        return float(2 * (said & actual[rows]).sum() / (said.sum() + actual[rows].sum()))

    def difference(rows: np.ndarray) -> float:
        return f1(rows, ours) - f1(rows, theirs)

    found = f1_difference(actual, ours, theirs, positive=1, resamples=4000, seed=0)
    rows = np.arange(200)
    expected = stats.bootstrap(
        (rows,), difference, n_resamples=1000, vectorized=False, method="percentile", rng=1
    ).confidence_interval
    expected_value = [metrics.f1_score(actual, p.argmax(axis=1)) for p in (ours, theirs)]
    assert found.value == pytest.approx(expected_value[0] - expected_value[1])
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.01)
    same = f1_difference(actual, ours, ours, positive=1, resamples=50, seed=0)
    assert (same.value, same.low, same.high) == (0, 0, 0)

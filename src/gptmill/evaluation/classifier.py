"""Classifier scores beside two baselines.

The baselines are the majority class and a bag of words. Accuracy has Wilson's
interval; metrics that are not a simple share (F1, ROC AUC) have a seeded percentile bootstrap over
the rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from gptmill.evaluation.estimates import Estimate, bootstrap, wilson

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ClassifierScore:
    """Accuracy, precision, recall, F1 and ROC AUC of a classifier.

    Precision, recall, F1 and AUC are for the positive class; with `positive` None each is the
    plain mean over all classes, and AUC is the mean over each class against the rest.
    """

    rows: int
    accuracy: Estimate
    precision: float
    recall: float
    f1: Estimate
    auc: Estimate


def score_classifier(
    actual: Counts, probabilities: Floats, *, positive: int | None, resamples: int, seed: int
) -> ClassifierScore:
    """Score class probabilities (N, K) against the actual classes (N,).

    Every class must occur among the actual classes.
    """
    rows = len(actual)
    figures = _figures(actual, probabilities, positive, _resampled(rows, resamples, seed))
    predicted = probabilities.argmax(axis=1)  # (N,)
    assert np.isfinite(figures["auc"][0]), "every class must occur among the actual classes"
    return ClassifierScore(
        rows,
        wilson(int((predicted == actual).sum()), rows),
        float(figures["precision"][0]),
        float(figures["recall"][0]),
        bootstrap(figures["f1"]),
        bootstrap(figures["auc"]),
    )


def f1_difference(
    actual: Counts,
    probabilities: Floats,
    baseline: Floats,
    *,
    positive: int | None,
    resamples: int,
    seed: int,
) -> Estimate:
    """Return a classifier's F1 minus a baseline's, with a paired bootstrap interval.

    Each resample draws the same rows for both (Efron and Tibshirani 1993, chapter 8): the interval
    is narrower than two separate intervals suggest, because both find the same rows difficult.
    """
    weights = _resampled(len(actual), resamples, seed)
    ours, theirs = (
        _figures(actual, scores, positive, weights)["f1"] for scores in (probabilities, baseline)
    )
    return bootstrap(ours - theirs)


def _resampled(rows: int, resamples: int, seed: int) -> Floats:
    """Return row weights (1 + R, N); the first are the rows themselves."""
    draws = np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=resamples)
    return np.vstack([np.ones((1, rows)), draws])


def _figures(
    actual: Counts, probabilities: Floats, positive: int | None, weights: Floats
) -> dict[str, Floats]:
    """Return each figure on the rows and on every resample, (1 + R,)."""
    predicted = probabilities.argmax(axis=1)  # (N,)
    scored = range(probabilities.shape[1]) if positive is None else [positive]
    parts = [_precision_recall_f1(actual == k, predicted == k, weights) for k in scored]
    precision, recall, f1 = np.mean(parts, axis=0)  # each (1 + R,)
    auc = np.mean([roc_auc(actual == k, probabilities[:, k], weights) for k in scored], axis=0)
    return {"precision": precision, "recall": recall, "f1": f1, "auc": auc}


def confusion(actual: Counts, predicted: Counts, classes: int) -> Counts:
    """Return the confusion matrix (K, K): actual rows, predicted columns."""
    pairs = np.bincount(actual * classes + predicted, minlength=classes**2)
    return pairs.reshape(classes, classes).astype(np.int64)


def roc_curve(actual: npt.NDArray[np.bool_], scores: Floats) -> pd.DataFrame:
    """Return false and true positive rates, highest threshold first."""
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    hits = actual[order]
    true, false = np.cumsum(hits)[last_of_tie], np.cumsum(~hits)[last_of_tie]
    return pd.DataFrame(
        {
            "false_positive_rate": np.append(0.0, false / false[-1]),
            "true_positive_rate": np.append(0.0, true / true[-1]),
        }
    )


def majority_probabilities(train: Counts, rows: int, classes: int) -> Floats:
    """Return the class shares of the training rows as probabilities.

    The shares are repeated for each row to score: (rows, K).
    """
    return np.tile(np.bincount(train, minlength=classes) / len(train), (rows, 1))


def bag_of_words_probabilities(
    train_texts: Sequence[str], train: Counts, texts: Sequence[str]
) -> Floats:
    """Return class probabilities of a logistic regression on word counts.

    Shape: (len(texts), K).
    """
    model = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=1000))
    return np.asarray(model.fit(train_texts, train).predict_proba(texts), dtype=np.float64)


def _precision_recall_f1(
    actual: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_], weights: Floats
) -> Floats:
    true_positives, predicted_positives, actual_positives = (
        weights @ rows.astype(np.float64) for rows in (actual & predicted, predicted, actual)
    )
    return np.stack(
        [
            true_positives / np.maximum(predicted_positives, 1),
            true_positives / np.maximum(actual_positives, 1),
            2 * true_positives / np.maximum(predicted_positives + actual_positives, 1),
        ]
    )  # (3, 1 + R)


def roc_auc(actual: npt.NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """Return the share of pairs in the right order.

    A pair is a positive and a negative row; ties count half.
    """
    order = np.argsort(scores, kind="stable")
    ties = np.flatnonzero(np.append(True, np.diff(scores[order]) != 0))
    positive = np.add.reduceat((weights * actual)[:, order], ties, axis=1)  # (1 + R, ties)
    negative = np.add.reduceat((weights * ~actual)[:, order], ties, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    shares: Floats = (positive * below).sum(axis=1) / np.where(pairs > 0, pairs, np.nan)
    return shares  # (1 + R,)

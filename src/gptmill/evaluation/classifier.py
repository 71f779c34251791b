"""Scores of classifiers beside the majority class and a bag of words.

Accuracy has Wilson's interval; what is no simple share (F1, ROC AUC) has a seeded percentile
bootstrap over the rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from gptmill.evaluation.estimates import Estimate, wilson

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ClassifierScore:
    """What a classifier got right.

    Precision, recall, F1 and AUC are about the positive class; with `positive` None each is
    the plain mean over all classes, and AUC that of each class against the rest.
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
    """Score class probabilities (N, K) against the actual classes (N,), each present in them."""
    rows, classes = probabilities.shape
    predicted = probabilities.argmax(axis=1)  # (N,)
    scored = range(classes) if positive is None else [positive]
    draws = np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=resamples)
    weights = np.vstack([np.ones((1, rows)), draws])  # (1 + R, N); the first: the rows themselves
    parts = [_precision_recall_f1(actual == k, predicted == k, weights) for k in scored]
    precision, recall, f1 = np.mean(parts, axis=0)  # each (1 + R,)
    auc = np.mean([_auc(actual == k, probabilities[:, k], weights) for k in scored], axis=0)
    return ClassifierScore(
        rows,
        wilson(int((predicted == actual).sum()), rows),
        float(precision[0]),
        float(recall[0]),
        _bootstrapped(f1),
        _bootstrapped(auc),
    )


def confusion(actual: Counts, predicted: Counts, classes: int) -> Counts:
    """Return how often each class (row) was taken for each class (column): (K, K)."""
    pairs = np.bincount(actual * classes + predicted, minlength=classes**2)
    return pairs.reshape(classes, classes).astype(np.int64)


def roc_curve(actual: npt.NDArray[np.bool_], scores: Floats) -> pd.DataFrame:
    """Return false and true positive rates at each threshold, highest threshold first."""
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
    """Return the classes' shares of the training rows, once per row to score: (rows, K)."""
    return np.tile(np.bincount(train, minlength=classes) / len(train), (rows, 1))


def bag_of_words_probabilities(
    train_texts: Sequence[str], train: Counts, texts: Sequence[str]
) -> Floats:
    """Return the class probabilities of a logistic regression on word counts: (len(texts), K)."""
    model = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=1000))
    return np.asarray(model.fit(train_texts, train).predict_proba(texts), dtype=np.float64)


def _precision_recall_f1(
    actual: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_], weights: Floats
) -> Floats:
    both, found, there = (
        weights @ rows.astype(np.float64) for rows in (actual & predicted, predicted, actual)
    )
    return np.stack(
        [
            both / np.maximum(found, 1),
            both / np.maximum(there, 1),
            2 * both / np.maximum(found + there, 1),
        ]
    )  # (3, 1 + R)


def _auc(actual: npt.NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """Return the share of (positive, negative) pairs in the right order, ties counting half."""
    order = np.argsort(scores, kind="stable")
    ties = np.flatnonzero(np.append(True, np.diff(scores[order]) != 0))
    positive = np.add.reduceat((weights * actual)[:, order], ties, axis=1)  # (1 + R, ties)
    negative = np.add.reduceat((weights * ~actual)[:, order], ties, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    shares: Floats = (positive * below).sum(axis=1) / np.where(pairs > 0, pairs, np.nan)
    return shares  # (1 + R,)


def _bootstrapped(values: Floats) -> Estimate:
    """Read an estimate off its value on the rows themselves, followed by those on resamples.

    A resample in which a class is missing has no AUC and is left out.
    """
    assert np.isfinite(values[0]), "each class is among the actual ones"
    drawn = values[1:][np.isfinite(values[1:])]
    low, high = np.quantile(drawn if len(drawn) else values[:1], [0.025, 0.975])
    return Estimate(float(values[0]), float(low), float(high))

"""How good a model is: language models, classifiers and assistants, each beside baselines.

Every share of right answers comes with Wilson's 95 % interval (1927,
https://doi.org/10.1080/01621459.1927.10502953), which stays within 0 and 1 on few rows;
what is no simple share (F1, ROC AUC) with a seeded percentile bootstrap over the rows.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from gptmill.model import GPT
from gptmill.objectives import IGNORE
from gptmill.tokenizer import Tokenizer

Ids = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

EDGES = ".,;:!?\"'`()[]{}<>*_\u2018\u2019\u201c\u201d\u2026"  # and curly quotes, ellipsis
Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


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


def wilson(right: int, total: int) -> Estimate:
    """Return right/total with Wilson's 95 % interval."""
    assert 0 <= right <= total, f"{right} right of {total}"
    assert total > 0, "no rows to score"
    share = right / total
    spread = Z_95**2 / total
    middle = (share + spread / 2) / (1 + spread)
    half = Z_95 * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half))


# ---- language models


def cut(ids: Ids, *, length: int, limit: int) -> tuple[Ids, Ids]:
    """Cut a text into windows that do not overlap, so that each id but the first is a target.

    Returns inputs and targets, both (W, length) int64; what lies past the text's end is
    IGNORE among the targets. A `limit` above 0 keeps that many windows, evenly spaced.
    """
    starts = np.arange(0, len(ids) - 1, length)
    if 0 < limit < len(starts):
        starts = starts[np.linspace(0, len(starts) - 1, limit).astype(np.int64)]
    places = starts[:, None] + np.arange(length)  # (W, length)
    last = len(ids) - 1
    inputs = np.asarray(ids[np.minimum(places, last)], dtype=np.int64)
    targets = np.asarray(ids[np.minimum(places + 1, last)], dtype=np.int64)
    return inputs, np.where(places + 1 > last, IGNORE, targets)


@torch.inference_mode()
def token_nats(model: GPT, inputs: Ids, targets: Ids, *, batch_size: int, device: str) -> Floats:
    """Return -ln p of every target that counts, row by row: (W, T), (W, T) -> (N,).

    Computed in float32 on every device, so that scores from different machines compare.
    """
    model = model.to(device).eval()
    found = []
    for start in range(0, len(inputs), batch_size):
        rows = slice(start, start + batch_size)
        logits = model(torch.from_numpy(inputs[rows]).to(device))  # (B, T, V)
        wanted = torch.from_numpy(targets[rows]).to(device)  # (B, T)
        nats = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
        found.append(nats[wanted.flatten() != IGNORE].double().cpu().numpy())
    return np.concatenate(found)


def token_sizes(tokenizer: Tokenizer) -> Counts:
    """Return how many bytes of text each id stands for, (V,); special tokens stand for none."""
    sizes = np.array([len(tokenizer.token_bytes(index)) for index in range(tokenizer.n_vocab)])
    sizes[list(tokenizer.special_ids.values())] = 0
    return sizes


def bits_per_byte(nats_per_token: float, *, tokens: int, size: int) -> float:
    """Return the bits spent on each byte of a text of `size` bytes that `tokens` ids spell.

    It compares models with different vocabularies, as nats per token do not.
    """
    return nats_per_token / math.log(2) * tokens / size


# ---- classifiers


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


# ---- assistants


def normalise(text: str) -> list[str]:
    """Return a text's words without case and without punctuation at their edges.

    Answers that differ only in that, or in white space, count as the same. Signs that change
    an answer ("-5", "C++", "50%") stay.
    """
    words = (word.strip(EDGES) for word in text.casefold().split())
    return [word for word in words if word]


def exact_match(answer: str, expected: str) -> bool:
    """Say whether two answers have the same words in the same order."""
    return normalise(answer) == normalise(expected)


def token_f1(answer: str, expected: str) -> float:
    """Return the harmonic mean of the shares of words that two answers have in common.

    As in SQuAD (https://arxiv.org/abs/1606.05250), but with the articles kept.
    """
    given, wanted = Counter(normalise(answer)), Counter(normalise(expected))
    if not given or not wanted:
        return float(given == wanted)
    return 2 * (given & wanted).total() / (given.total() + wanted.total())


def most_frequent_answers(train: pd.DataFrame) -> dict[str, str]:
    """Return each kind's answer that occurs most often in the training part, as first written.

    Of several equally frequent answers the alphabetically first is taken.
    """
    found = {}
    for kind, rows in train.groupby("kind", sort=True):
        spelled = {" ".join(normalise(output)): output for output in reversed(list(rows["output"]))}
        counts = Counter(" ".join(normalise(output)) for output in rows["output"])
        found[str(kind)] = spelled[min(counts, key=lambda words: (-counts[words], words))]
    return found


def score_assistant(answers: pd.DataFrame, train: pd.DataFrame) -> pd.DataFrame:
    """Score answers by kind of question beside the answer most frequent for that kind.

    `answers` has the columns kind, output (what was asked for), answer, and before: the answer
    of the model that was not fine-tuned yet; `train` the columns kind and output. One row a
    kind, sorted, and a last one named "all". `beats` says that more answers are exact than the
    baseline's; `beats_interval` that their share also lies above the baseline's 95 % interval.
    """
    usual = most_frequent_answers(train)
    rows = answers.assign(baseline=answers["kind"].map(usual).fillna(""))
    kinds = [(str(kind), part) for kind, part in rows.groupby("kind", sort=True)]
    return pd.DataFrame([_score_kind(kind, part) for kind, part in [*kinds, ("all", rows)]])


def _score_kind(kind: str, rows: pd.DataFrame) -> dict[str, str | int | float | bool]:
    exact, f1 = _score_column(rows, "answer")
    before, before_f1 = _score_column(rows, "before")
    baseline, baseline_f1 = _score_column(rows, "baseline")
    return {
        "kind": kind,
        "rows": len(rows),
        "exact_match": exact.value,
        "exact_match_low": exact.low,
        "exact_match_high": exact.high,
        "token_f1": f1,
        "before_exact_match": before.value,
        "before_exact_match_low": before.low,
        "before_exact_match_high": before.high,
        "before_token_f1": before_f1,
        "baseline_exact_match": baseline.value,
        "baseline_exact_match_low": baseline.low,
        "baseline_exact_match_high": baseline.high,
        "baseline_token_f1": baseline_f1,
        "beats": exact.value > baseline.value,
        "beats_interval": exact.value > baseline.high,
    }


def _score_column(rows: pd.DataFrame, column: str) -> tuple[Estimate, float]:
    pairs = list(zip(rows[column], rows["output"], strict=True))
    right = sum(exact_match(answer, expected) for answer, expected in pairs)
    return wilson(right, len(pairs)), sum(token_f1(*pair) for pair in pairs) / len(pairs)

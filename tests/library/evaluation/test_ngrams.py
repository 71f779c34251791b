"""The n-gram models against dictionaries that follow the formulas word by word."""

import math
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest

from gptmill.evaluation.ngrams import (
    HELD_BACK,
    STRENGTHS,
    Bigram,
    Unigram,
    fit_bigram,
)

VOCABULARY = 7


@pytest.fixture
def ids() -> np.ndarray:
    generator = np.random.default_rng(3)
    return generator.choice(VOCABULARY - 1, size=400, p=[0.4, 0.3, 0.15, 0.1, 0.04, 0.01])


def brute_unigram(ids: list[int], vocabulary: int) -> list[float]:
    counts = Counter(ids)
    return [
        (counts[word] + len(counts) / vocabulary) / (len(ids) + len(counts))
        for word in range(vocabulary)
    ]


def brute_bigram(ids: list[int], vocabulary: int, strength: float) -> dict[tuple[int, int], float]:
    below = brute_unigram(ids, vocabulary)
    after: dict[int, Counter[int]] = defaultdict(Counter)
    for previous, word in pairwise(ids):
        after[previous][word] += 1
    found = {}
    for previous in range(vocabulary):
        seen = after[previous]
        for word in range(vocabulary):
            backed = strength * len(seen)
            total = seen.total() + backed
            mixed = (seen[word] + backed * below[word]) / total if total else below[word]
            found[previous, word] = mixed
    return found


def test_unigram_equals_a_dictionary_of_counts(ids: np.ndarray) -> None:
    fitted = Unigram.fit(ids, VOCABULARY)
    expected = brute_unigram(ids.tolist(), VOCABULARY)
    np.testing.assert_allclose(fitted.probabilities, expected, rtol=1e-13)
    assert fitted.probabilities[VOCABULARY - 1] > 0  # never seen
    assert math.isclose(fitted.probabilities.sum(), 1.0)
    np.testing.assert_allclose(fitted.nats(np.array([2, 6])), -np.log([expected[2], expected[6]]))


@pytest.mark.parametrize("strength", [0.25, 1.0, 8.0])
def test_bigram_equals_a_dictionary_of_pairs(ids: np.ndarray, strength: float) -> None:
    fitted = Bigram.fit([ids], VOCABULARY, strength=strength)
    expected = brute_bigram(ids.tolist(), VOCABULARY, strength)
    pairs = np.array(list(expected))
    found = np.exp(-fitted.nats(pairs[:, 0], pairs[:, 1]))
    np.testing.assert_allclose(found, list(expected.values()), rtol=1e-12)


def test_bigram_probabilities_sum_to_one_after_every_id(ids: np.ndarray) -> None:
    fitted = Bigram.fit([ids], VOCABULARY, strength=2.0)
    for previous in range(VOCABULARY):
        before = np.full(VOCABULARY, previous)
        total = np.exp(-fitted.nats(before, np.arange(VOCABULARY))).sum()
        assert math.isclose(total, 1.0)


def test_pairs_do_not_reach_across_parts() -> None:
    apart = Bigram.fit([np.array([0, 1]), np.array([2, 3])], VOCABULARY, strength=1.0)
    assert apart.keys.tolist() == [1, 2 * VOCABULARY + 3]


def test_small_integer_ids_do_not_overflow() -> None:
    ids = np.array([50_000, 50_256, 50_000, 50_256, 1], dtype=np.uint16)
    fitted = Bigram.fit([ids], 50_257, strength=1.0)
    assert fitted.keys.tolist() == sorted(
        {50_000 * 50_257 + 50_256, 50_256 * 50_257 + 50_000, 50_256 * 50_257 + 1}
    )


@pytest.mark.parametrize("documents", [1, 25])
def test_tuned_strength_is_the_best_on_the_documents_held_back(documents: int) -> None:
    ids = np.random.default_rng(5).zipf(1.5, size=3000) % VOCABULARY
    starts = np.linspace(0, len(ids), documents, endpoint=False).astype(np.int64)
    fitted = fit_bigram(ids, starts, VOCABULARY)

    cuts = starts[1:] if documents == 25 else np.arange(150, 3000, 150)
    parts = np.split(ids, cuts)
    kept = [part for place, part in enumerate(parts) if place % HELD_BACK != 0]
    losses = {}
    for strength in STRENGTHS:
        tried = Bigram.fit(kept, VOCABULARY, strength=strength)
        nats = [tried.nats(part[:-1], part[1:]) for part in parts[::HELD_BACK]]
        losses[strength] = np.concatenate(nats).mean()
    assert fitted.strength == min(losses, key=losses.__getitem__)
    assert fitted.context_counts.sum() == len(ids) - 1  # counted again on everything


def test_a_bigram_beats_a_unigram_where_order_matters() -> None:
    ids = np.tile(np.arange(5), 200)
    bigram = fit_bigram(ids, np.array([0]), VOCABULARY)
    assert bigram.nats(ids[:-1], ids[1:]).mean() < 0.1
    assert bigram.unigram.nats(ids).mean() > 1.5


def test_a_short_text_is_not_tuned() -> None:
    ids = np.array([0, 1, 2, 0, 1])
    fitted = fit_bigram(ids, np.array([0, 3]), VOCABULARY)
    assert fitted.strength == 1.0
    assert np.isfinite(fitted.nats(ids[:-1], ids[1:])).all()

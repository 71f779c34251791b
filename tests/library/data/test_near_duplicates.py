"""Near-duplicates beside the comparison of all pairs."""

import random

import pytest

from gptmill.data.near_duplicates import earlier_twins, jaccard, shingles, words

RANDOM = random.Random(7)
VOCABULARY = [f"word{n}" for n in range(500)]


def planted(count: int = 150) -> list[str]:
    """Return texts, each followed by a copy with a word changed, and other case and signs."""
    texts = []
    for _ in range(count):
        text = RANDOM.choices(VOCABULARY, k=RANDOM.randrange(8, 30))
        copy = [word.upper() + "!" for word in text]
        copy[RANDOM.randrange(len(copy))] = "0900-123"
        texts += [" ".join(text), " ".join(copy)]
    return texts


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_all_pairs_above_the_threshold_are_found_and_no_others(threshold: float) -> None:
    sets = [shingles(words(text)) for text in planted()]
    pairs = {
        (row, twin)
        for row in range(len(sets))
        for twin in range(row)
        if jaccard(sets[row], sets[twin]) >= threshold
    }
    found = earlier_twins(sets, threshold)
    assert {(row, twin) for row, twins in enumerate(found) for twin in twins} == pairs
    if threshold == 0.5:
        assert pairs == {(row, row - 1) for row in range(1, len(sets), 2)}


@pytest.mark.parametrize(
    ("first", "second", "near"),
    [
        ("Call me, now!", "call ME now", True),
        ("see you at 5", "see you at 6", False),
        (
            "WINNER! Claim your 900 prize, call 0901",
            "Winner. Claim your 500 prize: call 0902",
            False,
        ),
        (
            "win a free prize now, text WIN to 80082",
            "win a FREE prize now! text WIN to 80085",
            True,
        ),
        ("one two three four five six", "six five four three two one", False),
        ("\u4f60\u597d", "\u4f60\u597d!", True),
    ],
)
def test_pairs(first: str, second: str, near: bool) -> None:
    sets = [shingles(words(text)) for text in (first, second)]
    assert bool(earlier_twins(sets, 0.5)[1]) == near


@pytest.mark.parametrize("threshold", [0.49, 1.01])
def test_a_threshold_that_the_bands_are_not_made_for_is_named(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"must be from 0\.5 to 1"):
        earlier_twins([], threshold)

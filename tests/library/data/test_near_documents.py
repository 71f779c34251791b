"""Near-duplicate documents: planted pairs of known similarity, in a stream."""

import random
from collections.abc import Callable, Iterable
from functools import partial

import pytest

from gptmill.data.near_documents import (
    Text,
    groups,
    later_twins,
    near_documents,
    shingle_hashes,
)
from gptmill.data.near_duplicates import jaccard, shingles, words

RANDOM = random.Random(7)
LEVELS = (0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8, 0.9, 1.0)
PAIRS = 20


def fresh(n: int) -> list[str]:
    return [f"{RANDOM.getrandbits(64):x}" for _ in range(n)]


def planted(similarity: float, length: int = 200) -> tuple[str, str]:
    """Return two texts of different words that share a beginning.

    Of 2 n - 1 shingles, 2 k - 1 are common: the similarity is at least the one asked for, by less
    than 0.01.
    """
    common = next(
        k for k in range(length + 1) if (2 * k - 1) / (4 * length - 2 * k - 1) >= similarity
    )
    start = fresh(common)
    first, second = (" ".join(start + fresh(length - common)) for _ in range(2))
    return first, second.upper()


def stream(texts: Iterable[str], piece: int = 1000) -> list[Text]:
    def pieces(text: str) -> Iterable[str]:
        return (text[start : start + piece] for start in range(0, len(text), piece))

    return [partial(pieces, text) for text in texts]


def test_planted_pairs_are_found_from_the_threshold_on_and_no_others() -> None:
    texts = [text for level in LEVELS for _ in range(PAIRS) for text in planted(level)]
    found = near_documents(stream(texts))
    assert all(pair.second == pair.first + 1 and pair.first % 2 == 0 for pair in found)  # precision
    recall = dict.fromkeys(LEVELS, 0.0)
    for pair in found:
        recall[LEVELS[pair.first // 2 // PAIRS]] += 1 / PAIRS
        sets = (shingles(words(texts[number])) for number in (pair.first, pair.second))
        assert pair.similarity == jaccard(*sets)
    assert {level: round(share, 9) for level, share in recall.items()} == {
        level: float(level >= 0.5) for level in LEVELS
    }


@pytest.mark.parametrize("piece", [1, 7, 10**6])
def test_a_text_in_pieces_has_the_shingles_of_the_splits(piece: int) -> None:
    short = ("", "?!", "One two.", "a b c d e", "Sea,\tsea\nSEA sea sea sea?")
    for text in (*short, " ".join(fresh(40)), " ".join(fresh(9000))):
        (read,) = stream([text], piece)
        assert len(shingle_hashes(read())) == len(shingles(words(text)))
        (whole,) = stream([text])
        assert list(shingle_hashes(read())) == list(shingle_hashes(whole()))


def test_groups_are_whole_and_every_text_is_read_few_times() -> None:
    base = fresh(300)
    chain = [" ".join(base[start : start + 200]) for start in range(0, 100, 20)]  # ends differ
    copies = [f"{chain[0]} {number}" for number in range(300)]
    texts = [*copies, *(" ".join(fresh(100)) for _ in range(100)), *chain]
    reads = [0] * len(texts)

    def counted(number: int, read: Text) -> Iterable[str]:
        reads[number] += 1
        return read()

    readers: list[Callable[[], Iterable[str]]] = [
        partial(counted, number, read) for number, read in enumerate(stream(texts))
    ]
    found = near_documents(readers)
    assert groups(found) == [[*range(300), *range(400, 405)]]
    assert len(found) == 304
    assert sum(reads) < 3 * len(texts)  # not 45,000 pairs
    kept = set(range(len(texts))) - {pair.second for pair in later_twins(readers, 0.8)}
    assert kept == {0, *range(300, 400), 402, 404}  # neighbours in the chain: 0.82, ends below 0.8


@pytest.mark.parametrize("threshold", [0.49, 1.01])
def test_a_threshold_that_the_bands_are_not_made_for_is_named(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"must be from 0\.5 to 1"):
        near_documents([], threshold)
    assert near_documents([]) == near_documents(stream(["alone"])) == []

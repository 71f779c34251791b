"""Near-duplicate documents, found in a stream by the MinHash of `near_duplicates`.

A text is read in pieces, and a signature of 768 bytes stays of each text, so that memory does not
grow with the length of the texts. Signatures with an equal band are candidates. Candidates with a
high estimated similarity are read again, and the similarity is then computed exactly. Pairs within
a known group are not compared: many copies of a text cost no more than many texts.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np
from datasketch import MinHash
from numpy.typing import NDArray
from pandas.util import hash_array

from gptmill.data.near_duplicates import BAND_SIZE, BANDS, SHORT, words

THRESHOLD = 0.5
"""The similarity of documents that stay in the same part, as of rows (`split.near_duplicates`)."""
MARGIN = 0.12
"""Candidates are read again from this far below the threshold: 3.3 standard deviations of the
estimate at a similarity of 0.5."""
BATCH = 4096  # shingles or pairs at a time: bounds the memory
PAIR = np.uint64(0x9E3779B97F4A7C15)  # an odd factor: "a b" and "b a" get different hashes
LOW = np.uint64(2**32 - 1)

Text = Callable[[], Iterable[str]]
"""A function that yields a text in pieces."""
Hashes = NDArray[np.uint64]
Numbers = NDArray[np.int64]


@dataclass(frozen=True, order=True)
class Twins:
    """Two near-duplicates by number, `first` below `second`, and the exact similarity."""

    similarity: float
    first: int
    second: int


def near_documents(texts: Sequence[Text], threshold: float = THRESHOLD) -> list[Twins]:
    """Return pairs with at least this similarity that connect every group of near-duplicates.

    A group of n texts has n - 1 pairs. Raises ValueError for a threshold outside 0.5 to 1.
    """
    if not 0.5 <= threshold <= 1:
        raise ValueError(f"the similarity threshold is {threshold} but must be from 0.5 to 1")
    signatures = _signatures(texts)
    group = np.arange(len(texts))
    hashes = lru_cache(maxsize=2)(lambda number: shingle_hashes(texts[number]()))
    compared: set[tuple[int, int]] = set()
    found = []
    for first, second in _candidates(signatures, group, threshold - MARGIN):
        if group[first] == group[second] or (first, second) in compared:
            continue
        compared.add((first, second))
        similarity = _jaccard(hashes(first), hashes(second))
        if similarity >= threshold:
            found.append(Twins(similarity, first, second))
            group[group == group[second]] = group[first]
    return found


def groups(pairs: Iterable[Twins]) -> list[list[int]]:
    """Return the groups that pairs connect, each in order, ordered by the first number."""
    group_of: dict[int, list[int]] = {}
    for pair in pairs:
        both = (group_of.setdefault(number, [number]) for number in (pair.first, pair.second))
        smaller, larger = sorted(both, key=len)
        if smaller is not larger:
            larger += smaller
            group_of |= dict.fromkeys(smaller, larger)
    return sorted(sorted(group) for group in {id(g): g for g in group_of.values()}.values())


def later_twins(texts: Sequence[Text], threshold: float) -> list[Twins]:
    """Return each text that an earlier text makes superfluous, as `second`, in order.

    The texts that remain have similarities below the threshold.
    """
    twins = []
    for group in groups(near_documents(texts, threshold)):
        kept: list[tuple[int, Hashes]] = []
        for number in group:
            own = shingle_hashes(texts[number]())
            nearest = max(
                (Twins(_jaccard(own, other), n, number) for n, other in kept), default=None
            )
            if nearest is not None and nearest.similarity >= threshold:
                twins.append(nearest)
            else:
                kept.append((number, own))
    return sorted(twins, key=lambda pair: pair.second)


def shingle_hashes(pieces: Iterable[str]) -> Hashes:
    """Return the hashes of a text's shingles, each once, sorted."""
    return np.unique(np.concatenate(list(_shingle_hashes(pieces))))


def _jaccard(first: Hashes, second: Hashes) -> float:
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / (len(first) + len(second) - common)


def _shingle_hashes(pieces: Iterable[str]) -> Iterator[Hashes]:
    """Yield the hashes of a text's `shingles`, about BATCH of them at a time."""
    known: list[str] = []
    is_short = True
    for found in _words(pieces):
        known += found
        if len(known) > BATCH:
            is_short = False
            yield _hashed(known)
            known = known[-1:]
    is_short = is_short and len(known) < SHORT
    yield _hashed([" ".join(known)] if is_short else known)


def _words(pieces: Iterable[str]) -> Iterator[list[str]]:
    """Yield a text's words by piece; a word in two pieces is yielded whole."""
    rest = ""
    for piece in pieces:
        text = rest + piece
        end = max(text.rfind(" "), text.rfind("\n")) + 1
        rest = text[end:]
        yield words(text[:end])
    yield words(rest)


def _hashed(text_words: list[str]) -> Hashes:
    """Return the hashes of words and pairs of neighbouring words."""
    single = hash_array(np.array(text_words, dtype=object), categorize=False)
    return np.unique(np.concatenate([single, single[:-1] * PAIR + single[1:]]))


def _signatures(texts: Sequence[Text]) -> NDArray[np.uint32]:
    """Return the MinHash values of each text."""  # (texts, BANDS * BAND_SIZE)
    empty = MinHash(num_perm=BANDS * BAND_SIZE, hashfunc=int)
    signatures = np.empty((len(texts), BANDS * BAND_SIZE), dtype=np.uint32)
    for number, text in enumerate(texts):
        minhash = empty.copy()
        for hashes in _shingle_hashes(text()):
            for part in _slices(len(hashes)):
                minhash.update_batch((hashes[part] & LOW).tolist())
        signatures[number] = minhash.hashvalues
    return signatures


def _candidates(
    signatures: NDArray[np.uint32], group: Numbers, least: float
) -> Iterator[tuple[int, int]]:
    """Yield pairs of different groups with an equal band and at least this estimated similarity.

    The lower number comes first. Neighbours in the order of each band come before all other pairs:
    most copies are then in one group, and few pairs are left.
    """
    for most in (1, None):
        for band in np.split(signatures, BANDS, axis=1):
            for pairs in islice(_in_equal_bands(band, group), most):
                apart = pairs[group[pairs[:, 0]] != group[pairs[:, 1]]]
                for batch in (apart[part] for part in _slices(len(apart))):
                    equal = signatures[batch[:, 0]] == signatures[batch[:, 1]]
                    likely = batch[equal.mean(axis=1) >= least]
                    yield from map(tuple, np.sort(likely, axis=1).tolist())


def _in_equal_bands(band: NDArray[np.uint32], group: Numbers) -> Iterator[Numbers]:
    """Yield the pairs of texts with equal values in a band and different groups, in blocks.

    The first block has neighbours in the order of the values.
    """  # blocks of (pairs, 2)
    order = np.lexsort((group, *band.T))
    changes = np.any(band[order][1:] != band[order][:-1], axis=1)
    of_group = changes | (group[order][1:] != group[order][:-1])
    first, second, end = np.arange(len(order)), _ends(of_group), _ends(changes)
    while True:
        inside = second < end[first]
        first, second = first[inside], second[inside]
        if not len(first):
            return
        yield np.stack([order[first], order[second]], axis=1)
        second = second + 1


def _ends(changes: NDArray[np.bool_]) -> Numbers:
    """Return the end of each row's run; `changes` tells whether the next row starts a run."""
    ends = np.append(np.flatnonzero(changes) + 1, len(changes) + 1)
    return np.repeat(ends, np.diff(ends, prepend=0))


def _slices(rows: int) -> Iterator[slice]:
    return (slice(start, start + BATCH) for start in range(0, rows, BATCH))

"""Near-duplicates: texts that share most of their words and word pairs.

The similarity of two texts is the Jaccard similarity of their sets of words and pairs of
neighbouring words. MinHash with locality-sensitive hashing (Broder 1997,
https://doi.org/10.1109/SEQUEN.1997.666900) finds the candidates without comparing all pairs; the
similarity of every candidate is then computed exactly.
"""

import re
from collections.abc import Sequence
from itertools import pairwise

from datasketch import MinHash, MinHashLSH

WORD = re.compile(r"\w+")
SHORT = 6
"""Texts with fewer words are near-duplicates only if their words are equal: short texts share words
by chance."""
EXAMPLES = 5
BANDS, BAND_SIZE = 64, 3
"""Hash bands: a pair at similarity 0.5 becomes a candidate with a probability of 99.98 %, and
pairs above with a higher one."""


def words(text: str) -> list[str]:
    """Return a text's casefolded words; all punctuation is left out."""
    return WORD.findall(text.casefold())


def shingles(text_words: Sequence[str]) -> frozenset[str]:
    """Return words and word pairs, or all words as a single shingle for a short text."""
    if len(text_words) < SHORT:
        return frozenset([" ".join(text_words)])
    return frozenset(text_words) | {f"{first} {second}" for first, second in pairwise(text_words)}


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Return the share of common shingles among all shingles."""
    common = len(first & second)
    return common / (len(first) + len(second) - common)


def examples(
    pairs: Sequence[tuple[int, int]],
    texts: Sequence[str],
    sets: Sequence[frozenset[str]],
    *,
    parts: Sequence[str | None],
    alone: Sequence[str],
) -> list[dict[str, str | float]]:
    """Return a few pairs of near-duplicates, each with part and beginning; no row comes twice.

    Pairs that a split row by row (`alone`) puts into two parts come first, then the most similar.
    """
    rated = sorted((alone[a] == alone[b], -jaccard(sets[a], sets[b]), b, a) for a, b in pairs)
    shown: set[int] = set()
    found: list[dict[str, str | float]] = []
    for _, rating, *rows in rated:
        if len(found) < EXAMPLES and shown.isdisjoint(rows):
            shown |= {*rows}
            found.append({"similarity": round(-rating, 4)})
            for prefix, row in zip(("", "twin "), rows, strict=True):
                found[-1] |= {
                    f"{prefix}part": parts[row] or "left out",
                    f"{prefix}part alone": alone[row],
                    f"{prefix}begins": " ".join(texts[row].split())[:60],
                }
    return found


def earlier_twins(sets: Sequence[frozenset[str]], threshold: float) -> list[list[int]]:
    """Return for each set of shingles the earlier sets with at least this similarity.

    Raises ValueError for a threshold outside 0.5 to 1, the range that the hash bands are made for.
    """
    if not 0.5 <= threshold <= 1:
        raise ValueError(f"the similarity threshold is {threshold} but must be from 0.5 to 1")
    encoded = [[shingle.encode() for shingle in shingle_set] for shingle_set in sets]
    hashes = MinHash.bulk(encoded, num_perm=BANDS * BAND_SIZE)
    index = MinHashLSH(num_perm=BANDS * BAND_SIZE, params=(BANDS, BAND_SIZE))
    twins = []
    for number, minhash in enumerate(hashes):
        candidates = sorted(index.query(minhash))
        twins.append([c for c in candidates if jaccard(sets[c], sets[number]) >= threshold])
        index.insert(number, minhash)
    return twins

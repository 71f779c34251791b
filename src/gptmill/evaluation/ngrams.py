"""Count-based language models as baselines: a unigram and a bigram.

The baselines of a trained GPT are Witten-Bell models (Witten and Bell 1991,
https://doi.org/10.1109/18.87000): the more different words have followed a context, the more
probability goes to words not yet seen after the context. The unigram falls back to the uniform
distribution, the bigram to the unigram:

    p(w)     = (c(w)    + T    / V)    / (N    + T)
    p(w | h) = (c(h, w) + s T(h) p(w)) / (c(h) + s T(h))

with c counts, N tokens, V ids in the vocabulary, T distinct ids seen, T(h) distinct ids seen
after h. Every id has a probability above zero, and all probabilities sum to 1. The strength s (1 in
the paper) is the only number tuned, on training documents held back while counting.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.integer]
Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

STRENGTHS = tuple(2.0**power for power in range(-4, 7))
HELD_BACK = 10  # every tenth part is held back to tune the strength
SHORT = 200  # a text with fewer ids is too small for tuning


@dataclass(frozen=True)
class Unigram:
    """Frequency of each id, independent of the previous id."""

    probabilities: Floats  # (V,)

    @classmethod
    def fit(cls, ids: Ids, vocab_size: int) -> "Unigram":
        """Count the ids of a training text."""
        counts = np.bincount(ids, minlength=vocab_size)  # (V,)
        assert len(counts) == vocab_size, f"an id is outside the vocabulary of {vocab_size} ids"
        seen = np.count_nonzero(counts)
        return cls((counts + seen / vocab_size) / (len(ids) + seen))

    def nats(self, targets: Ids) -> Floats:
        """Return -ln p of each target: (N,) -> (N,)."""
        return -np.log(self.probabilities[targets])


@dataclass(frozen=True)
class Bigram:
    """Frequency of each id pair, backed by a unigram."""

    unigram: Unigram
    keys: Counts  # (P,) sorted: previous id * V + id of each pair seen
    counts: Counts  # (P,) how often the pair was seen
    context_counts: Counts  # (V,) c(h)
    context_types: Counts  # (V,) T(h)
    strength: float

    @classmethod
    def fit(cls, parts: Sequence[Ids], vocab_size: int, *, strength: float) -> "Bigram":
        """Count the pairs within each part, never across two parts."""
        pairs = np.concatenate([_keys(part[:-1], part[1:], vocab_size) for part in parts])
        keys, counts = np.unique(pairs, return_counts=True)
        return cls(
            Unigram.fit(np.concatenate(parts), vocab_size),
            keys,
            counts,
            np.bincount(pairs // vocab_size, minlength=vocab_size),
            np.bincount(keys // vocab_size, minlength=vocab_size),
            strength,
        )

    def nats(self, previous: Ids, targets: Ids) -> Floats:
        """Return -ln p of each target after the previous id.

        Shapes: (N,), (N,) -> (N,).
        """
        pairs = _keys(previous, targets, len(self.context_counts))
        indices = np.minimum(np.searchsorted(self.keys, pairs), len(self.keys) - 1)
        counts = np.where(self.keys[indices] == pairs, self.counts[indices], 0)
        backed = self.strength * self.context_types[previous]  # s T(h)
        below = self.unigram.probabilities[targets]
        total = self.context_counts[previous] + backed
        seen = total > 0  # without a successor in the training text, only the unigram remains
        mixed = (counts + backed * below) / np.where(seen, total, 1.0)
        return -np.log(np.where(seen, mixed, below))


def fit_bigram(ids: Ids, starts: Ids, vocab_size: int) -> Bigram:
    """Fit a bigram on a whole text, with tuned strength.

    The strength is tuned on a tenth of the documents. `starts` holds the position of each
    document's first id. A text of fewer than twenty documents is cut into twenty equal parts
    instead. A text of fewer than 200 ids gets the paper's strength of 1.
    """
    if len(ids) < SHORT:
        return Bigram.fit([ids], vocab_size, strength=1.0)
    documents = np.split(ids, _cuts(starts, len(ids)))
    held_back = [part for part in documents[::HELD_BACK] if len(part) > 1]
    counted = [part for index, part in enumerate(documents) if index % HELD_BACK]
    first = Bigram.fit(counted, vocab_size, strength=1.0)
    previous = np.concatenate([part[:-1] for part in held_back])
    targets = np.concatenate([part[1:] for part in held_back])

    def held_back_nats(strength: float) -> float:
        return float(replace(first, strength=strength).nats(previous, targets).mean())

    return Bigram.fit([ids], vocab_size, strength=min(STRENGTHS, key=held_back_nats))


def _cuts(starts: Ids, length: int) -> Counts:
    if len(starts) < 2 * HELD_BACK:
        return np.linspace(0, length, 2 * HELD_BACK + 1).astype(np.int64)[1:-1]
    assert starts[0] == 0, "the first document starts at 0"
    return np.asarray(starts[1:], dtype=np.int64)


def _keys(previous: Ids, targets: Ids, vocab_size: int) -> Counts:
    return previous.astype(np.int64) * vocab_size + targets

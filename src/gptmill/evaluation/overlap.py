"""Common words of an answer and the expected answer."""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

EDGES = ".,;:!?\"'`()[]{}<>*_\u2018\u2019\u201c\u201d\u2026"  # and curly quotes, ellipsis
SEPARATOR = re.compile(r"[,;/|\n]|(?:^|\s)(?:\d+[.)]|[-*\u2022])\s|\b(?:and|or)\b", re.IGNORECASE)
SHORT = 3  # words of an item in a list of alternatives
ALTERNATIVES = 3  # short items in an answer that is no list


@dataclass(frozen=True)
class Overlap:
    """The shares of common words in the answer and in the expected answer.

    F1 is the harmonic mean of both shares, as in SQuAD (https://arxiv.org/abs/1606.05250), but
    with the articles kept.
    """

    precision: float
    recall: float
    f1: float

    @classmethod
    def of(cls, answer: str, expected: str) -> "Overlap":
        """Count the common words; repeated words count as often as both texts have them."""
        counts, expected_counts = Counter(normalise(answer)), Counter(normalise(expected))
        if not counts or not expected_counts:
            same = float(counts == expected_counts)
            return cls(same, same, same)
        common, total, expected_total = (
            words.total() for words in (counts & expected_counts, counts, expected_counts)
        )
        f1 = 2 * common / (total + expected_total)
        return cls(common / total, common / expected_total, f1)


def repetition(words: Sequence[str]) -> float:
    """Return the share of runs of four words that repeat an earlier run; 0 for short texts."""
    runs = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def normalise(text: str) -> list[str]:
    """Return a text's casefolded words, without punctuation at the edges.

    Answers that differ only in case, punctuation at the edges or white space count as equal. Signs
    that change an answer ("-5", "C++", "50%") stay.
    """
    words = (word.strip(EDGES) for word in text.casefold().split())
    return [word for word in words if word]


def exact_match(answer: str, expected: str) -> bool:
    """Return whether both answers have the same words in order."""
    return normalise(answer) == normalise(expected)


def token_f1(answer: str, expected: str) -> float:
    """Return the F1 score of the words of both answers."""
    return Overlap.of(answer, expected).f1


def names(answer: str, expected: str, others: Collection[str]) -> bool:
    """Return whether an answer names the expected answer and nothing else.

    A sentence around the expected words counts as much as the words alone. An answer does not
    count if it also names one of the `others` (the further answers of a closed kind), or lists
    more than three short alternatives.
    """
    words, wanted = normalise(answer), normalise(expected)
    wrong = [other for other in map(normalise, others) if not _has(wanted, other)]
    if not _has(words, wanted) or any(_has(words, other) for other in wrong):
        return False
    items = (normalise(part) for part in SEPARATOR.split(answer))
    n_short = sum(0 < len(item) <= SHORT for item in items)
    return n_short <= ALTERNATIVES


def _has(words: list[str], phrase: list[str]) -> bool:
    """Return whether the words of a phrase occur in a row."""
    size = len(phrase)
    return size > 0 and any(words[k : k + size] == phrase for k in range(len(words) - size + 1))

"""Exercises about words, made from WordNet by a seeded rule, with answers that can be scored.

Each row has the form of the book's instruction set (instruction, input, output) and a
kind. Which words are asked about and in which phrasing is a pure function of the seed and
the word, so that more rows of one kind change no row of another.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from gptmill.sources.wordnet import Sense, Synset, WordNet

WORD = re.compile(r"[a-z]{3,12}")
FORM_OF_A_VERB = re.compile(r"(ing|ed)$")
PLURAL = re.compile(r"[^s]s$")
UNFIT = re.compile(
    r"slur|offensive|disparag|derogat|obscen|vulgar|sex|genital|excre|feces|prostitut|naked"
    r"|drug|penis|vagina|semen|menstr|nazi|rape|slave",
    re.IGNORECASE,
)
SENTENCE = re.compile(r"(he|she|they|it|we|you|i|there) ", re.IGNORECASE)
COMMON = 15_000  # words, by how often WordNet uses them; rarer ones are not asked about
WELL_KNOWN = 5_000  # a rarer word would surprise as an answer: `fille` for `girl`
# Forms of verbs and plurals that WordNet has under another, rarer meaning.
MISLEADING = re.compile(
    r"are|bowels|broke|broken|but|cattle|children|clocks|cows|dealt|done|drawn|driven|dug|eats"
    r"|feet|flies|fought|given|gone|ground|grown|heard|held|hidden|hind|hooks|hops|humans|kept"
    r"|known|lap|lost|made|men|not|organs|oxen|paid|parts|remains|roads|said|sang|seen|shot"
    r"|sink|sixties|sold|spirits|spoke|spoken|stewing|struck|sung|taken|teeth|throes|told"
    r"|twenties|women|worn|woven|written|belonging"
)
CATEGORIES = {
    "noun.animal": "animal",
    "noun.artifact": "artifact",
    "noun.body": "body part",
    "noun.feeling": "feeling",
    "noun.food": "food",
    "noun.person": "person",
    "noun.plant": "plant",
    "noun.substance": "substance",
}
WORD_CLASSES = ("noun", "verb", "adjective", "adverb")

# `{}` stands for the word in quotes; a phrasing without it has the bare word as its input.
PHRASINGS = {
    "word class": (
        "What is the word class of the word {}?",
        "What part of speech is {}?",
        "Is the word a noun, a verb, an adjective or an adverb?",
        "Name the word class of the given word.",
    ),
    "category": (
        "What kind of thing is named by the word {}?",
        "Is it an animal, artifact, body part, feeling, food, person, plant or substance?",
        "Name the category of the given word.",
        "To which category does {} belong?",
    ),
    "antonym": (
        "What is the opposite of {}?",
        "Give an antonym of {}.",
        "Provide an antonym for the given word.",
    ),
    "synonym": (
        "What is a synonym for {}?",
        "Give another word for {}.",
        "Provide a synonym for the given word.",
    ),
    "definition": (
        "Define the word {}.",
        "What does {} mean?",
        "Provide the definition of the given word.",
    ),
    "sentence": (
        "Use the word {} in a sentence.",
        "Write a sentence with {}.",
        "Create a sentence using the given word.",
    ),
}


class Pair(NamedTuple):
    """A word that is asked about, the answer, and the group that must be as large as others."""

    word: str
    answer: str
    group: str = ""


def exercises(
    members: Mapping[str, bytes], *, seed: int, rows: Mapping[str, int]
) -> dict[str, bytes]:
    """Return `instructions.json`: `rows` gives the number of rows for each kind of exercise.

    Raises ValueError for a kind that is not known, and for more rows than there are words.
    """
    wrong = [kind for kind, count in rows.items() if not isinstance(count, int) or count < 0]
    if not isinstance(seed, int) or wrong:
        raise ValueError(
            f"seed and each of rows must be whole numbers, not {seed!r} and {dict(rows)}"
        )
    unknown = sorted(set(rows) - set(PHRASINGS))
    if unknown:
        raise ValueError(
            f"no exercise of the kind {unknown[0]!r}; there are {', '.join(PHRASINGS)}"
        )
    lexicon = Lexicon(WordNet(members))
    made = [
        _row(kind, pair, seed=seed)
        for kind in PHRASINGS
        for pair in choose(lexicon.pairs(kind), rows.get(kind, 0), seed=seed, kind=kind)
    ]
    made.sort(key=lambda row: draw(seed, "order", row["kind"], row["instruction"], row["input"]))
    return {"instructions.json": (json.dumps(made, indent=1, ensure_ascii=False) + "\n").encode()}


def choose(pairs: Iterable[Pair], count: int, *, seed: int, kind: str) -> list[Pair]:
    """Return `count` pairs, as many from each group, half of the most common words of each.

    `pairs` has the most common words first. Raises ValueError where a group is too small.
    """
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.group, []).append(pair)
    each, rest = divmod(count, len(groups) or 1)
    smallest = min(map(len, groups.values()), default=0)
    if rest or each > smallest:
        raise ValueError(
            f"{count} rows of {kind!r} were asked for; allowed is a multiple of {len(groups)}"
            f" up to {smallest * len(groups)}"
        )
    return [
        pair
        for _, group in sorted(groups.items())
        for pair in sorted(group[: each * 3 // 2], key=lambda pair: draw(seed, kind, pair.word))[
            :each
        ]
    ]


def draw(seed: int, *parts: str) -> int:
    """Return a large number that is a pure function of the seed and the parts."""
    return int.from_bytes(
        hashlib.sha256("\n".join([str(seed), *parts]).encode()).digest()[:8], "big"
    )


def _row(kind: str, pair: Pair, *, seed: int) -> dict[str, str]:
    phrasings = PHRASINGS[kind]
    phrasing = phrasings[draw(seed, "phrasing", kind, pair.word) % len(phrasings)]
    return {
        "instruction": phrasing.format(f"'{pair.word}'"),
        "input": "" if "{}" in phrasing else pair.word,
        "output": pair.answer,
        "kind": kind,
    }


class Lexicon:
    """WordNet's common words and what can be asked about each."""

    def __init__(self, wordnet: WordNet) -> None:
        """Rank the words by how often WordNet's own definitions and examples use them."""
        self.wordnet = wordnet
        used: Counter[str] = Counter()
        for synset in wordnet.synsets.values():
            used.update(re.findall(r"[a-z]+", " ".join((synset.definition, *synset.examples))))
        common = {word: used[word] + wordnet.counts[word] for word in wordnet.senses if fit(word)}
        self.words = sorted(common, key=lambda word: (-common[word], word))[:COMMON]
        self.rank = {word: place for place, word in enumerate(self.words)}
        self.asked = {word: sense for word in self.words if (sense := self._plain_sense(word))}

    def pairs(self, kind: str) -> Iterator[Pair]:
        """Yield the pairs of a kind of exercise, the most common words first."""
        ask: dict[str, Callable[[str, Synset], Pair | None]] = {
            "word class": self._word_class,
            "category": self._category,
            "antonym": self._antonym,
            "synonym": self._synonym,
            "definition": self._definition,
            "sentence": self._sentence,
        }
        for word, synset in self.asked.items():
            pair = ask[kind](word, synset)
            if pair is not None:
                yield pair

    def _plain_sense(self, word: str) -> Synset | None:
        """Return what a word mostly means, None where that is a name or gives offence."""
        synset = self.wordnet.first(word)
        assert synset is not None
        said = " ".join((synset.definition, *synset.words))
        return synset if word in synset.words and not UNFIT.search(said) else None

    def _word_class(self, word: str, synset: Synset) -> Pair | None:
        classes = {sense.word_class for sense in self.wordnet.senses[word]}
        if len(classes) > 1 or FORM_OF_A_VERB.search(word):
            return None
        return Pair(word, synset.word_class, synset.word_class)

    def _category(self, word: str, synset: Synset) -> Pair | None:
        category = CATEGORIES.get(synset.file)
        if category is None or self._share(word, lambda other: other.file == synset.file) < 0.6:
            return None
        return Pair(word, category, category)

    def _antonym(self, word: str, synset: Synset) -> Pair | None:
        """Ask in one direction only, or one row would give away another's answer."""
        opposites = self.wordnet.opposite(synset, word)
        if len(opposites) != 1 or opposites[0] not in self.rank:
            return None
        back = self.wordnet.first(opposites[0], synset.word_class)
        if back is None or self.wordnet.opposite(back, opposites[0]) != [word]:
            return None
        return Pair(word, opposites[0]) if self.rank[word] < self.rank[opposites[0]] else None

    def _synonym(self, word: str, synset: Synset) -> Pair | None:
        same = [
            other
            for other in synset.words
            if self.rank.get(other, COMMON) < WELL_KNOWN and self.wordnet.first(other) == synset
        ]
        same.sort(key=self.rank.__getitem__)
        if len(same) < 2 or same[0] != word or same[1][:4] == word[:4]:
            return None
        return Pair(word, same[1])

    def _definition(self, word: str, synset: Synset) -> Pair | None:
        text = synset.definition.split(";")[0].strip()
        short = 3 <= len(text.split()) <= 12 and not text.startswith("(")
        if not short or self._share(word, lambda other: other == synset) < 0.6:
            return None
        return None if word[:5] in text else Pair(word, text)

    def _sentence(self, word: str, synset: Synset) -> Pair | None:
        for example in synset.examples:
            words = example.split()
            whole = SENTENCE.match(example) and 5 <= len(words) <= 12
            if whole and word in words and not UNFIT.search(example):
                end = "" if example[-1] in ".!?" else "."
                return Pair(word, example[0].upper() + example[1:] + end)
        return None

    def _share(self, word: str, same: Callable[[Synset], bool]) -> float:
        """Return how much of a word's use is of the wanted kind, each sense counted once more."""
        senses = self.wordnet.senses[word]

        def weight(chosen: Iterable[Sense]) -> int:
            return sum(sense.count + 1 for sense in chosen)

        wanted = [sense for sense in senses if same(self.wordnet.synsets[sense.key])]
        return weight(wanted) / weight(senses)


def fit(word: str) -> bool:
    """Tell whether a word may be asked about or be an answer: common form, no offence."""
    plain = WORD.fullmatch(word) and not PLURAL.search(word)
    return bool(plain) and not MISLEADING.fullmatch(word) and not UNFIT.search(word)

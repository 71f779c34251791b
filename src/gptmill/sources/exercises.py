"""Word exercises, made from WordNet by seed, with scorable answers.

Each row has the form of the book's instruction set (instruction, input, output), a kind, and a
key: the words that a right answer names. Outputs are sentences. The choice of words and phrasings
is a pure function of the seed and the word: more rows of one kind change no row of another kind.
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
COMMON = 15_000  # the words most used in WordNet; no exercise asks about rarer words
WELL_KNOWN = 5_000  # a rarer word would surprise as an answer: `fille` for `girl`
# Forms of verbs and plurals listed in WordNet under a different, rarer meaning.
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

# `{}` stands for the word in quotes; a phrasing without `{}` has the bare word as input.
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
# Answers in sentences; `{}` stands for the word, `{a}` for the answer with its article, `{answer}`
# for the bare answer.
ANSWERS = {
    "word class": ("The word '{}' is {a}.", "'{}' is {a}.", "It is {a}."),
    "category": ("The word '{}' names {a}.", "It belongs to the category '{answer}'."),
    "antonym": ("The opposite of '{}' is '{answer}'.", "An antonym of '{}' is '{answer}'."),
    "synonym": ("Another word for '{}' is '{answer}'.", "A synonym of '{}' is '{answer}'."),
    "definition": ("The word '{}' means: {answer}.", "'{}' means: {answer}."),
    "sentence": ("{answer}",),
}
NAMED = ("word class", "category", "antonym", "synonym")
"""The kinds whose answer is right if the sentence names the word in `key`."""


class Pair(NamedTuple):
    """The word of an exercise, the answer, and the group.

    All groups get the same number of rows.
    """

    word: str
    answer: str
    group: str = ""


def exercises(
    members: Mapping[str, bytes], *, seed: int, rows: Mapping[str, int]
) -> dict[str, bytes]:
    """Return `instructions.json` with exercises of several kinds.

    `rows` gives the number of rows for each kind of exercise. Raises ValueError for an unknown
    kind, and for more rows than words.
    """
    if not isinstance(rows, Mapping):
        raise ValueError(f"rows must be a table of kinds and row counts, not {rows!r}")
    invalid = [kind for kind, count in rows.items() if not isinstance(count, int) or count < 0]
    if not isinstance(seed, int) or invalid:
        raise ValueError(
            f"seed and the row counts must be whole numbers, not {seed!r} and {dict(rows)}"
        )
    unknown = sorted(set(rows) - set(PHRASINGS))
    if unknown:
        raise ValueError(
            f"unknown kind of exercise {unknown[0]!r}; the kinds are {', '.join(PHRASINGS)}"
        )
    lexicon = Lexicon(WordNet(members))
    records = [
        _row(kind, pair, seed=seed)
        for kind in PHRASINGS
        for pair in choose(lexicon.pairs(kind), rows.get(kind, 0), seed=seed, kind=kind)
    ]
    records.sort(key=lambda row: draw(seed, "order", row["kind"], row["instruction"], row["input"]))
    return {
        "instructions.json": (json.dumps(records, indent=1, ensure_ascii=False) + "\n").encode()
    }


def choose(pairs: Iterable[Pair], count: int, *, seed: int, kind: str) -> list[Pair]:
    """Return `count` pairs, with the same number from each group.

    `pairs` has the most common words first. The n pairs of a group are drawn by seed
    from the 3 n / 2 most common words of the group. Raises ValueError if a group is too small.
    """
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.group, []).append(pair)
    per_group, remainder = divmod(count, len(groups) or 1)
    smallest = min(map(len, groups.values()), default=0)
    if remainder or per_group > smallest:
        raise ValueError(
            f"{count} rows of {kind!r} were requested; the number must be a multiple of"
            f" {len(groups)} up to {smallest * len(groups)}"
        )
    return [
        pair
        for _, group in sorted(groups.items())
        for pair in sorted(
            group[: per_group * 3 // 2], key=lambda pair: draw(seed, kind, pair.word)
        )[:per_group]
    ]


def draw(seed: int, *parts: str) -> int:
    """Return a large number determined by seed and parts alone."""
    return int.from_bytes(
        hashlib.sha256("\n".join([str(seed), *parts]).encode()).digest()[:8], "big"
    )


def _row(kind: str, pair: Pair, *, seed: int) -> dict[str, str]:
    phrasings, answers = PHRASINGS[kind], ANSWERS[kind]
    phrasing = phrasings[draw(seed, "phrasing", kind, pair.word) % len(phrasings)]
    answer = answers[draw(seed, "answer", kind, pair.word) % len(answers)]
    article = "an" if pair.answer[0] in "aeiou" else "a"
    return {
        "instruction": phrasing.format(f"'{pair.word}'"),
        "input": "" if "{}" in phrasing else pair.word,
        "output": answer.format(pair.word, a=f"{article} {pair.answer}", answer=pair.answer),
        "kind": kind,
        "key": pair.answer if kind in NAMED else "",
    }


class Lexicon:
    """WordNet's common words and the exercises about each word."""

    def __init__(self, wordnet: WordNet) -> None:
        """Rank words by frequency in WordNet's definitions, examples and counts."""
        self.wordnet = wordnet
        used: Counter[str] = Counter()
        for synset in wordnet.synsets.values():
            used.update(re.findall(r"[a-z]+", " ".join((synset.definition, *synset.examples))))
        common = {word: used[word] + wordnet.counts[word] for word in wordnet.senses if fit(word)}
        self.words = sorted(common, key=lambda word: (-common[word], word))[:COMMON]
        self.rank = {word: index for index, word in enumerate(self.words)}
        self.asked = {word: sense for word in self.words if (sense := self._plain_sense(word))}

    def pairs(self, kind: str) -> Iterator[Pair]:
        """Yield pairs of an exercise kind, most common words first."""
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
        """Return the most common sense of a word.

        Return None if the sense is a name or gives offence.
        """
        synset = self.wordnet.first(word)
        assert synset is not None
        text = " ".join((synset.definition, *synset.words))
        return synset if word in synset.words and not UNFIT.search(text) else None

    def _word_class(self, word: str, synset: Synset) -> Pair | None:
        classes = {sense.word_class for sense in self.wordnet.senses[word]}
        if len(classes) > 1 or FORM_OF_A_VERB.search(word):
            return None
        return Pair(word, synset.word_class, synset.word_class)

    def _category(self, word: str, synset: Synset) -> Pair | None:
        category = CATEGORIES.get(synset.file)
        if category is None or self._share(word, lambda sense: sense.file == synset.file) < 0.6:
            return None
        return Pair(word, category, category)

    def _antonym(self, word: str, synset: Synset) -> Pair | None:
        """Return the pair in a single direction only.

        A row in the opposite direction would give away the answer.
        """
        opposites = self.wordnet.opposite(synset, word)
        if len(opposites) != 1 or opposites[0] not in self.rank:
            return None
        reverse = self.wordnet.first(opposites[0], synset.word_class)
        if reverse is None or self.wordnet.opposite(reverse, opposites[0]) != [word]:
            return None
        return Pair(word, opposites[0]) if self.rank[word] < self.rank[opposites[0]] else None

    def _synonym(self, word: str, synset: Synset) -> Pair | None:
        synonyms = [
            candidate
            for candidate in synset.words
            if self.rank.get(candidate, COMMON) < WELL_KNOWN
            and self.wordnet.first(candidate) == synset
        ]
        synonyms.sort(key=self.rank.__getitem__)
        if len(synonyms) < 2 or synonyms[0] != word or synonyms[1][:4] == word[:4]:
            return None
        return Pair(word, synonyms[1])

    def _definition(self, word: str, synset: Synset) -> Pair | None:
        text = synset.definition.split(";")[0].strip()
        short = 3 <= len(text.split()) <= 12 and not text.startswith("(")
        if not short or self._share(word, lambda sense: sense == synset) < 0.6:
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

    def _share(self, word: str, matches: Callable[[Synset], bool]) -> float:
        """Return the share of a word's uses in matching senses.

        Each sense is counted once more than WordNet counts the sense.
        """
        senses = self.wordnet.senses[word]

        def weight(counted: Iterable[Sense]) -> int:
            return sum(sense.count + 1 for sense in counted)

        matching = [sense for sense in senses if matches(self.wordnet.synsets[sense.key])]
        return weight(matching) / weight(senses)


def fit(word: str) -> bool:
    """Return whether a word is fit for question and answer.

    The word must have a common form and give no offence.
    """
    plain = WORD.fullmatch(word) and not PLURAL.search(word)
    return bool(plain) and not MISLEADING.fullmatch(word) and not UNFIT.search(word)

"""WordNet's database files: sets of words that mean the same, and how they hang together.

https://wordnet.princeton.edu/documentation/wndb5wn describes the files. The offsets in
them are kept as names only, so that a noun file cut in two (as one package carries it)
reads like a whole one.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

CLASSES = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}
SENSE_CLASSES = {"1": "noun", "2": "verb", "3": "adjective", "4": "adverb", "5": "adjective"}
MARKER = re.compile(r"\((?:a|p|ip)\)$")  # where an adjective may stand: `galore(ip)`
QUOTED = re.compile(r'"([^"]*)"')

Key = tuple[str, str]  # word class and offset: the name of a set of synonyms


@dataclass(frozen=True)
class Synset:
    """Words that mean the same: the word class, the file it is kept in, what it means.

    `opposites` pairs the place of a word in `words` with the set and the place in it that
    holds its antonym.
    """

    word_class: str
    file: str
    words: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]
    opposites: tuple[tuple[int, Key, int], ...]


@dataclass(frozen=True)
class Sense:
    """One meaning of a word, and how often it was met in the tagged texts."""

    word_class: str
    key: Key
    count: int


class WordNet:
    """The synonym sets by their key, and each word's senses, the most common first."""

    def __init__(self, members: Mapping[str, bytes]) -> None:
        """Read data.{noun,verb,adj,adv} (each may be cut in parts), index.sense and lexnames."""
        files = {PurePosixPath(name).name: content for name, content in members.items()}
        missing = {"index.sense", "lexnames"} - set(files)
        if missing:
            raise ValueError(f"WordNet's {' and '.join(sorted(missing))} is not in the archive")
        self._files = dict(line.split()[:2] for line in _lines(files["lexnames"]))
        self.synsets = {
            (CLASSES[fields[2]], fields[0]): self._synset(fields, gloss)
            for name, content in sorted(files.items())
            if name.startswith("data.")
            for fields, gloss in _entries(content)
        }
        self.senses = _senses(files["index.sense"])

    @cached_property
    def counts(self) -> dict[str, int]:
        """How often each word was met in the tagged texts, in all its senses."""
        return {word: sum(sense.count for sense in senses) for word, senses in self.senses.items()}

    def first(self, word: str, word_class: str | None = None) -> Synset | None:
        """Return the set of a word's most common sense (in a word class), None without one."""
        for sense in self.senses.get(word, ()):
            if word_class in (None, sense.word_class):
                return self.synsets[sense.key]
        return None

    def opposite(self, synset: Synset, word: str) -> list[str]:
        """Return the antonyms that a set gives for one of its words."""
        return [
            self.synsets[key].words[there]
            for here, key, there in synset.opposites
            if synset.words[here] == word
        ]

    def _synset(self, fields: list[str], gloss: str) -> Synset:
        size = int(fields[3], 16)
        words = tuple(
            MARKER.sub("", word).replace("_", " ") for word in fields[4 : 4 + 2 * size : 2]
        )
        rest = fields[5 + 2 * size :]
        pointers = [rest[at : at + 4] for at in range(0, 4 * int(fields[4 + 2 * size]), 4)]
        return Synset(
            word_class=CLASSES[fields[2]],
            file=self._files[fields[1]],
            words=words,
            definition=QUOTED.split(gloss)[0].strip().rstrip(";:, "),
            examples=tuple(example.strip() for example in QUOTED.findall(gloss)),
            opposites=tuple(
                (int(ends[:2], 16) - 1, (CLASSES[letter], offset), int(ends[2:], 16) - 1)
                for symbol, offset, letter, ends in pointers
                if symbol == "!"
            ),
        )


def _lines(content: bytes) -> Iterator[str]:
    return (line for line in content.decode("latin-1").split("\n") if line.strip())


def _entries(content: bytes) -> Iterator[tuple[list[str], str]]:
    """Yield a data file's entries; the licence at its top is indented."""
    for line in _lines(content):
        if not line.startswith(" "):
            fields, _, gloss = line.partition(" | ")
            yield fields.split(), gloss.strip()


def _senses(content: bytes) -> dict[str, list[Sense]]:
    """Return each word's senses, by how often they were met, then in WordNet's own order."""
    found: dict[str, list[tuple[int, int, Sense]]] = {}
    for line in _lines(content):
        name, offset, number, count = line.split()
        word, _, place = name.rpartition("%")
        word_class = SENSE_CLASSES[place[0]]
        sense = Sense(word_class, (word_class, offset), int(count))
        found.setdefault(word.replace("_", " "), []).append((-int(count), int(number), sense))
    return {
        word: [sense for *_, sense in sorted(ranked, key=_rank)] for word, ranked in found.items()
    }


def _rank(ranked: tuple[int, int, Sense]) -> tuple[int, int]:
    return ranked[0], ranked[1]

"""WordNet's database files: sets of synonyms and their relations.

https://wordnet.princeton.edu/documentation/wndb5wn describes the files. Offsets in the files
serve as names only, so a noun file cut in two (as in one package) reads like a whole file.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

CLASSES = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}
SENSE_CLASSES = {"1": "noun", "2": "verb", "3": "adjective", "4": "adverb", "5": "adjective"}
MARKER = re.compile(r"\((?:a|p|ip)\)$")  # allowed position of an adjective: `galore(ip)`
QUOTED = re.compile(r'"([^"]*)"')

Key = tuple[str, str]  # word class and offset: the name of a synset


@dataclass(frozen=True)
class Synset:
    """A set of synonyms: word class, lexicographer file, words, definition.

    `opposites` links the index of a word in `words` to the antonym: the key of a synset, and
    the index in the `words` of the linked synset.
    """

    word_class: str
    file: str
    words: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]
    opposites: tuple[tuple[int, Key, int], ...]


@dataclass(frozen=True)
class Sense:
    """A meaning of a word, and its tagged-text count."""

    word_class: str
    key: Key
    count: int


class WordNet:
    """The synsets by key, and the senses of each word.

    The most common sense of a word is the first.
    """

    def __init__(self, members: Mapping[str, bytes]) -> None:
        """Read data.{noun,verb,adj,adv}, index.sense and lexnames.

        Each data file may be cut in parts.
        """
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
        """Return each word's tagged-text count, summed over all senses."""
        return {word: sum(sense.count for sense in senses) for word, senses in self.senses.items()}

    def first(self, word: str, word_class: str | None = None) -> Synset | None:
        """Return the synset of a word's most common sense.

        With `word_class`, only senses of the word class count. Return None without a sense.
        """
        for sense in self.senses.get(word, ()):
            if word_class in (None, sense.word_class):
                return self.synsets[sense.key]
        return None

    def opposite(self, synset: Synset, word: str) -> list[str]:
        """Return the antonyms of a word in a synset."""
        return [
            self.synsets[key].words[antonym]
            for index, key, antonym in synset.opposites
            if synset.words[index] == word
        ]

    def _synset(self, fields: list[str], gloss: str) -> Synset:
        size = int(fields[3], 16)
        words = tuple(
            MARKER.sub("", word).replace("_", " ") for word in fields[4 : 4 + 2 * size : 2]
        )
        rest = fields[5 + 2 * size :]
        pointers = [rest[start : start + 4] for start in range(0, 4 * int(fields[4 + 2 * size]), 4)]
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
    """Yield the entries of a data file.

    The indented lines at the top are the licence.
    """
    for line in _lines(content):
        if not line.startswith(" "):
            fields, _, gloss = line.partition(" | ")
            yield fields.split(), gloss.strip()


def _senses(content: bytes) -> dict[str, list[Sense]]:
    """Return the senses of each word, most common first.

    Senses of equal count keep WordNet's own order.
    """
    ranked_senses: dict[str, list[tuple[int, int, Sense]]] = {}
    for line in _lines(content):
        name, offset, number, count = line.split()
        word, _, lex_sense = name.rpartition("%")
        word_class = SENSE_CLASSES[lex_sense[0]]
        sense = Sense(word_class, (word_class, offset), int(count))
        ranked_senses.setdefault(word.replace("_", " "), []).append(
            (-int(count), int(number), sense)
        )
    return {
        word: [sense for *_, sense in sorted(ranked, key=_rank)]
        for word, ranked in ranked_senses.items()
    }


def _rank(ranked: tuple[int, int, Sense]) -> tuple[int, int]:
    return ranked[0], ranked[1]

"""The vocabulary of a byte-level byte pair encoding: its tokens, its merges, its special tokens.

Two families are known. GPT-2's (Radford et al. 2019, section 2.2) is its merges and no more:
ids 0 to 255 are the single bytes in GPT-2's order, then comes what each merge makes, then
`<|endoftext|>`. SmolLM2's (Allal et al. 2025, https://arxiv.org/abs/2502.02737) has its special
tokens first, takes each digit by itself, and lacks the bytes that its training text lacked.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

END_OF_TEXT = "<|endoftext|>"
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
"""What special tokens are for, as Hugging Face's files call it."""

Merge = tuple[bytes, bytes]
Spelled = tuple[str, str]


def _byte_characters() -> dict[int, str]:
    """Return the character by which GPT-2's files spell each byte, in the order of their ids.

    Bytes that Latin-1 prints stand for themselves; the others, spaces and controls, take the
    characters from 256 on, so that a token is one word in a text file.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    spelled = {byte: chr(byte) for byte in printable}
    return spelled | {byte: chr(256 + index) for index, byte in enumerate(others)}


SPELLING = _byte_characters()
BYTES = {character: byte for byte, character in SPELLING.items()}


def spell(token: bytes) -> str:
    """Return a token as the files spell it, one character a byte."""
    return "".join(SPELLING[byte] for byte in token)


def unspell(token: str) -> bytes:
    """Return the bytes of a token that the files spell; what spells no byte stands for itself."""
    return b"".join(
        bytes([BYTES[character]]) if character in BYTES else character.encode()
        for character in token
    )


@dataclass(frozen=True)
class Vocabulary:
    """All that decides which ids a text gets.

    Raises ValueError where ids are missing or given twice, a merge joins tokens that are not
    there, or nothing ends a document.
    """

    tokens: tuple[str, ...]
    """As the files spell them, by id; special tokens as plain text."""
    merges: tuple[Spelled, ...]
    special: frozenset[str]
    digits: bool = False
    """Whether each digit is taken by itself before GPT-2's pattern splits the text."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """Which special token begins a text, ends one and fills one up: by names of `ROLES`."""

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.tokens):
            twice = next(t for index, t in enumerate(self.tokens) if self.ids[t] != index)
            raise ValueError(f"the vocabulary holds token {twice!r} twice; allowed is once")
        known = self.ids.keys()
        for left, right in self.merges:
            if not {left, right, left + right} <= known:
                raise ValueError(
                    f"merge {left + ' ' + right!r} joins or makes a token that is not in the "
                    "vocabulary; allowed are merges of known tokens into a known one"
                )
        given = {END_OF_TEXT, *self.roles.values()} & self.special
        if not given:
            raise ValueError(
                f"no special token ends a document; allowed is a vocabulary with {END_OF_TEXT} or "
                "an eos_token"
            )

    @cached_property
    def ids(self) -> dict[str, int]:
        """Return each token as the files spell it, with its id."""
        return {token: index for index, token in enumerate(self.tokens)}

    @cached_property
    def bytes_of(self) -> list[bytes]:
        """Return the bytes that each id stands for in a text."""
        return [t.encode() if t in self.special else unspell(t) for t in self.tokens]

    @property
    def end(self) -> str:
        """Return the special token that ends a document."""
        return END_OF_TEXT if END_OF_TEXT in self.special else self.roles["eos_token"]

    @cached_property
    def is_gpt2(self) -> bool:
        """Return whether this is GPT-2's own form, the one that tiktoken reads exactly."""
        made = [*SPELLING.values(), *(left + right for left, right in self.merges), END_OF_TEXT]
        return not self.digits and self.special == {END_OF_TEXT} and list(self.tokens) == made

    def fingerprint(self) -> str:
        """Return a hash of all that decides ids; vocabularies with the same one are the same."""
        digest = hashlib.sha256()
        if self.is_gpt2:
            for token in self.bytes_of[:-1]:
                digest.update(len(token).to_bytes(4, "little") + token)
            digest.update(END_OF_TEXT.encode("ascii"))
        else:
            parts = [self.tokens, self.merges, sorted(self.special), self.digits]
            digest.update(json.dumps(parts).encode())
        return digest.hexdigest()


def gpt2_vocabulary(merges: Iterable[Merge]) -> Vocabulary:
    """Return the vocabulary that merges make in GPT-2's form; each joins tokens there by then."""
    spelled = [(spell(left), spell(right)) for left, right in merges]
    tokens = [*SPELLING.values(), *(left + right for left, right in spelled), END_OF_TEXT]
    roles = dict.fromkeys(ROLES, END_OF_TEXT)
    return Vocabulary(tuple(tokens), tuple(spelled), frozenset([END_OF_TEXT]), roles=roles)


def by_id(ids: Mapping[str, int]) -> tuple[str, ...]:
    """Return tokens in the order of their ids; raise ValueError where these leave a gap."""
    tokens = sorted(ids, key=lambda token: ids[token])
    for index, token in enumerate(tokens):
        if ids[token] != index:
            raise ValueError(
                f"token {token!r} has id {ids[token]} where {index} is next; allowed are the ids "
                "from 0 on, each once"
            )
    return tuple(tokens)


def read_merge(line: str) -> Spelled | None:
    """Return the two tokens that a line of merges names, None where it is no such line."""
    parts = line.split(" ")
    if len(parts) != 2 or not all(parts) or not BYTES.keys() >= set("".join(parts)):
        return None
    return parts[0], parts[1]


def longest_first(words: Iterable[str]) -> Sequence[str]:
    """Return words in the order in which a pattern must try them to find the longest."""
    return sorted(words, key=lambda word: (-len(word), word))

"""GPT-2's vocabulary: the spelling of bytes, and the tokens that merges create.

In GPT-2's form (Radford et al. 2019, section 2.2) the merges are the whole vocabulary: ids 0 to 255
are the single bytes in GPT-2's order, then follows the token of each merge, then `<|endoftext|>`.
"""

from collections.abc import Iterable, Sequence

END_OF_TEXT = "<|endoftext|>"
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
"""The roles of special tokens, by their names in Hugging Face's files."""

Merge = tuple[bytes, bytes]
Spelled = tuple[str, str]


def _byte_characters() -> dict[int, str]:
    """Return the character for each byte in GPT-2's files, in the order of the ids.

    Printable Latin-1 bytes stand for themselves. Spaces and controls take the characters from 256
    upwards, so that a token is a single word in a text file.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unprintable = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable}
    return characters | {byte: chr(256 + index) for index, byte in enumerate(unprintable)}


SPELLING = _byte_characters()
BYTES = {character: byte for byte, character in SPELLING.items()}


def spell(token: bytes) -> str:
    """Return the spelling of a token in files, one character per byte."""
    return "".join(SPELLING[byte] for byte in token)


def unspell(token: str) -> bytes:
    """Return the bytes of a spelled token; characters outside of the spelling are UTF-8."""
    return b"".join(
        bytes([BYTES[character]]) if character in BYTES else character.encode()
        for character in token
    )


def gpt2_tokens(merges: Iterable[Spelled]) -> list[str]:
    """Return the spelled tokens of merges in GPT-2's form, in the order of their ids."""
    return [*SPELLING.values(), *(left + right for left, right in merges), END_OF_TEXT]


def read_merge(line: str) -> Spelled | None:
    """Return the two tokens of a line of merges; None for any malformed line."""
    parts = line.split(" ")
    if len(parts) != 2 or not all(parts) or not BYTES.keys() >= set("".join(parts)):
        return None
    return parts[0], parts[1]


def longest_first(words: Iterable[str]) -> Sequence[str]:
    """Return words sorted for a pattern that prefers the longest match."""
    return sorted(words, key=lambda word: (-len(word), word))

"""GPT-2's vocabulary files, rebuilt byte for byte from ranked tokens.

Each line of the list (`gpt2.tiktoken`) holds a token's bytes in base64 and the token's rank.
OpenAI's own files hold the same data in a different form: `encoder.json` maps each token to an
id, `vocab.bpe` lists the merges in the order they were learned.
"""

import base64
import json
from collections.abc import Mapping
from itertools import pairwise

END_OF_TEXT = "<|endoftext|>"


def bpe_files(members: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return `vocab.bpe` and `encoder.json` from a `*.tiktoken` file.

    `members` must contain only the `*.tiktoken` file.
    """
    ranks = _ranks(_only(members))
    letters = byte_letters()
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = (merge_of(token, ranks) for token in ranks if len(token) > 1)
    lines = [f"{spelled[left]} {spelled[right]}" for left, right in merges]
    ids = {spelled[token]: rank for token, rank in ranks.items()} | {END_OF_TEXT: len(ranks)}
    return {
        "vocab.bpe": "\n".join(["#version: 0.2", *lines, ""]).encode(),
        "encoder.json": json.dumps(ids).encode(),
    }


def _only(members: Mapping[str, bytes]) -> bytes:
    if len(members) != 1:
        raise ValueError(f"expected a single list of ranked tokens, got {len(members)}")
    (content,) = members.values()
    return content


def _ranks(content: bytes) -> dict[bytes, int]:
    pairs = (line.split() for line in content.splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    assert list(ranks.values()) == list(range(len(ranks))), "ranks must be in order, without gaps"
    return ranks


def merge_of(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """Return the two parts merged into `token`.

    The merges learned before `token`, applied in order to the bytes of `token`, leave exactly
    two parts.
    """
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        merged = [ranks.get(left + right) for left, right in pairwise(parts)]
        rank, index = min((rank, index) for index, rank in enumerate(merged) if rank is not None)
        assert rank < ranks[token], "a token must consist of tokens learned earlier"
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    return parts[0], parts[1]


def byte_letters() -> dict[int, str]:
    """Return the printable letter for each byte in GPT-2's files.

    Bytes printable in Latin-1 stand for themselves; the remaining bytes (spaces, controls)
    take the letters from U+0100 on, in order, to keep spaces out of tokens.
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {
        byte: chr(0x100 + index) for index, byte in enumerate(hidden)
    }

"""GPT-2's two vocabulary files, remade byte for byte from a list of ranked tokens.

The list (`gpt2.tiktoken`) holds each token's bytes in base64 and its rank, a line each.
OpenAI's own files hold the same in another form: `encoder.json` maps a token to its id,
`vocab.bpe` lists the merges in the order in which they were learned.
"""

import base64
import json
from collections.abc import Mapping
from itertools import pairwise

END_OF_TEXT = "<|endoftext|>"


def bpe_files(members: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return `vocab.bpe` and `encoder.json` from the one `*.tiktoken` file in `members`."""
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
        raise ValueError(f"one list of ranked tokens is needed, not {len(members)}")
    (content,) = members.values()
    return content


def _ranks(content: bytes) -> dict[bytes, int]:
    pairs = (line.split() for line in content.splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    assert list(ranks.values()) == list(range(len(ranks))), "ranks stand in order, without gaps"
    return ranks


def merge_of(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """Return the two parts whose merge made `token`.

    The merges learned before it, applied to its bytes in their order, leave just these two.
    """
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        joined = [ranks.get(left + right) for left, right in pairwise(parts)]
        rank, place = min((rank, place) for place, rank in enumerate(joined) if rank is not None)
        assert rank < ranks[token], "a token is made of tokens that were learned before it"
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts[0], parts[1]


def byte_letters() -> dict[int, str]:
    """Return the printable letter by which GPT-2's files write each byte.

    A byte that Latin-1 prints stands for itself; the others (spaces, controls) take the
    letters from U+0100 on, in order, so that a token never holds a space.
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {
        byte: chr(0x100 + place) for place, byte in enumerate(hidden)
    }

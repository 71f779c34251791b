"""A tokenizer as the metadata of a GGUF file holds it.

The keys are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the kind "gpt2"
is any byte-level byte pair encoding, and `tokenizer.ggml.pre` names how text is split before.
"""

from collections.abc import Mapping
from typing import Any

from gptmill.tokenizer.vocabulary import Spelled, Vocabulary, read_merge

DIGITS = {"gpt-2": False, "gpt2": False, "smollm": True}
"""For each known split before merging, whether it takes each digit by itself."""
NORMAL, CONTROL, UNUSED = 1, 3, 5  # kinds of token
ROLES = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
}


def read(metadata: Mapping[str, Any]) -> Vocabulary:
    """Read the vocabulary in a file's metadata; raise ValueError where it is of another kind."""
    kind, split = _value(metadata, "tokenizer.ggml.model"), _value(metadata, "tokenizer.ggml.pre")
    if kind != "gpt2" or split not in DIGITS:
        raise ValueError(
            f"the GGUF file's tokenizer is of the kind {kind!r} with the split {split!r}, which is "
            f"not supported; allowed is 'gpt2' with one of {', '.join(DIGITS)}"
        )
    for name in ("tokens", "merges"):
        if not _value(metadata, f"tokenizer.ggml.{name}"):
            raise ValueError(f"the GGUF file has no tokenizer.ggml.{name}; it must bring its own")
    tokens = tuple(_value(metadata, "tokenizer.ggml.tokens"))
    merges = _value(metadata, "tokenizer.ggml.merges")
    kinds = _value(metadata, "tokenizer.ggml.token_type")
    given = {role: _value(metadata, key) for role, key in ROLES.items()}
    roles = {role: tokens[index] for role, index in given.items() if index is not None}
    try:
        special = _special(tokens, kinds) | {
            roles[r] for r in ("bos_token", "eos_token") & roles.keys()
        }
        return Vocabulary(
            tokens,
            tuple(_merge(line) for line in merges),
            special,
            DIGITS[split],
            {role: token for role, token in roles.items() if token in special},
        )
    except ValueError as error:
        raise ValueError(f"the GGUF file's tokenizer: {error}") from None


def chat_template(metadata: Mapping[str, Any]) -> str | None:
    """Return the chat template in a file's metadata, if it has one."""
    found = _value(metadata, "tokenizer.chat_template")
    return None if found is None else str(found)


def _value(metadata: Mapping[str, Any], key: str) -> Any:
    """Return a value that is given as it is, or as a field of the library `gguf`."""
    found: Any = metadata.get(key)
    return found.contents() if hasattr(found, "contents") else found


def _merge(line: str) -> Spelled:
    merge = read_merge(line)
    if merge is None:
        raise ValueError(
            f"{line!r} is not a merge; allowed are two tokens and one space between them"
        )
    return merge


def _special(tokens: tuple[str, ...], kinds: list[int] | None) -> frozenset[str]:
    if kinds is None or len(kinds) != len(tokens):
        raise ValueError(
            f"it has {len(tokens)} tokens and {len(kinds or [])} of tokenizer.ggml.token_type; "
            "allowed is one for each token"
        )
    for token, kind in zip(tokens, kinds, strict=True):
        if kind not in (NORMAL, CONTROL, UNUSED):
            raise ValueError(
                f"token {token!r} is of the kind {kind}, which is not supported; allowed are "
                f"{NORMAL} (normal), {CONTROL} (control) and {UNUSED} (unused)"
            )
    return frozenset(t for t, kind in zip(tokens, kinds, strict=True) if kind == CONTROL)

"""The tokenizer in the metadata of a GGUF file.

The keys are defined in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The kind "gpt2"
is any byte-level byte pair encoding, and `tokenizer.ggml.pre` names the pre-tokenizer.
"""

from collections.abc import Mapping
from typing import Any

from gptmill.files import checked
from gptmill.tokenizer.huggingface import SPLITS, Definition, byte_level
from gptmill.tokenizer.vocabulary import Spelled, read_merge

NAMES = {**{name: name for name in SPLITS}, "gpt2": "gpt-2"}
"""The known pre-tokenizers; "gpt2" is a second name of "gpt-2"."""
NORMAL, CONTROL, UNUSED = 1, 3, 5  # llama.cpp's kinds of token
ENDS = (
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",  # of a turn
    "tokenizer.ggml.eom_token_id",  # of a message
)
"""The keys of ids that end a text."""
ROLES = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
}


def read(metadata: Mapping[str, Any]) -> Definition:
    """Read the definition in a file's metadata; raise ValueError for an unsupported kind."""
    kind, split = _value(metadata, "tokenizer.ggml.model"), _value(metadata, "tokenizer.ggml.pre")
    if kind != "gpt2" or split not in NAMES:
        raise ValueError(
            f"the GGUF file's tokenizer is of the kind {kind!r} with the split {split!r}, which is "
            f"not supported; allowed is 'gpt2' with one of {', '.join(NAMES)}"
        )
    for name in ("tokens", "merges"):
        if not _value(metadata, f"tokenizer.ggml.{name}"):
            raise ValueError(f"the GGUF file has no tokenizer.ggml.{name}; the file must have one")
    tokens = tuple(_list(metadata, "tokenizer.ggml.tokens", str))
    merges = _list(metadata, "tokenizer.ggml.merges", str)
    kinds = _list(metadata, "tokenizer.ggml.token_type", int)
    ids = {role: _id(metadata, key, len(tokens)) for role, key in ROLES.items()}
    roles = {role: tokens[index] for role, index in ids.items() if index is not None}
    try:
        special = {*_special(tokens, kinds)}
        special |= {roles[role] for role in ("bos_token", "eos_token") if role in roles}
        return byte_level(
            tokens,
            [_merge(line) for line in merges],
            sorted(special, key=tokens.index),
            split=NAMES[split],
            roles=roles,
        )
    except ValueError as error:
        raise ValueError(f"the GGUF file's tokenizer: {error}") from None


def chat_template(metadata: Mapping[str, Any]) -> str | None:
    """Return the chat template in a file's metadata, if any."""
    template = _value(metadata, "tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise ValueError(f"the GGUF file's tokenizer.chat_template is {template!r:.40}, not text")
    return template


def read_end_ids(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """Return all ids that end a text, most important first."""
    n_tokens = len(_list(metadata, "tokenizer.ggml.tokens", str))
    ids = (_id(metadata, key, n_tokens) for key in ENDS)
    return tuple(index for index in ids if index is not None)


def _value(metadata: Mapping[str, Any], key: str) -> Any:
    """Return a value, or the contents of a field of the library `gguf`."""
    value: Any = metadata.get(key)
    return value.contents() if hasattr(value, "contents") else value


def _list(metadata: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    return list(checked(list[kind], _value(metadata, key) or [], f"the GGUF file's {key}"))  # type: ignore[valid-type]


def _id(metadata: Mapping[str, Any], key: str, n_tokens: int) -> int | None:
    index = _value(metadata, key)
    if index is not None and (not isinstance(index, int) or not 0 <= index < n_tokens):
        raise ValueError(f"the GGUF file's {key} is {index!r}; allowed are 0 to {n_tokens - 1}")
    return index


def _merge(line: str) -> Spelled:
    merge = read_merge(line)
    if merge is None:
        raise ValueError(
            f"{line!r} is not a merge; allowed are two tokens and one space between them"
        )
    return merge


def _special(tokens: tuple[str, ...], kinds: list[int]) -> frozenset[str]:
    if len(kinds) != len(tokens):
        raise ValueError(
            f"there are {len(tokens)} tokens and {len(kinds)} of tokenizer.ggml.token_type; "
            "allowed is one per token"
        )
    for token, kind in zip(tokens, kinds, strict=True):
        if kind not in (NORMAL, CONTROL, UNUSED):
            raise ValueError(
                f"token {token!r} is of the kind {kind}, which is not supported; allowed are "
                f"{NORMAL} (normal), {CONTROL} (control) and {UNUSED} (unused)"
            )
    return frozenset(t for t, kind in zip(tokens, kinds, strict=True) if kind == CONTROL)

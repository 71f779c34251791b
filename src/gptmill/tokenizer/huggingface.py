"""Tokenizers as Hugging Face's folders define them: `tokenizer.json` and the files beside it.

The `tokenizers` library interprets `tokenizer.json`. This module collects the definition from a
folder: added tokens may also be in `tokenizer_config.json` and `added_tokens.json`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from tokenizers import Tokenizer

from gptmill.files import checked, read_object, read_text
from gptmill.tokenizer.vocabulary import END_OF_TEXT, ROLES, Spelled, gpt2_tokens

ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
LARGEST_ID = 9_999_999
"""Limit of ids: memory grows with the largest id of a vocabulary."""
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
DIGITS = {"type": "Digits", "individual_digits": True}
SPLITS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "gpt-2": [{**BYTE_LEVEL, "use_regex": True}],
    "smollm": [DIGITS, {**BYTE_LEVEL, "use_regex": True}],
}
"""Pre-tokenizers by llama.cpp's names."""


@dataclass(frozen=True)
class Definition:
    """The content of a `tokenizer.json` in the library's own form, and the roles of tokens."""

    content: Mapping[str, Any]
    roles: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, content: Mapping[str, Any], roles: Mapping[str, str]) -> "Definition":
        """Return the definition in the library's form; raise ValueError for unreadable content."""
        if content["model"].get("dropout"):
            raise ValueError("model.dropout is set: ids would be random; allowed is null")
        fixed = {**content, "truncation": None, "padding": None}  # settings of a single call
        try:
            library = Tokenizer.from_str(json.dumps(fixed))
        except BaseException as error:  # the library raises no narrower class, and panics
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise ValueError(f"the library tokenizers cannot read the content: {error}") from None
        largest = max(library.get_vocab(with_added_tokens=True).values(), default=0)
        if largest > LARGEST_ID:
            raise ValueError(f"an id is {largest}; allowed are ids up to {LARGEST_ID}")
        own = json.loads(library.to_str())
        special = {token["content"] for token in own["added_tokens"] if token["special"]}
        return cls(own, {role: token for role, token in roles.items() if token in special})

    @property
    def special(self) -> dict[str, int]:
        """Return the special tokens with their ids."""
        added = self.content["added_tokens"]
        return {token["content"]: token["id"] for token in added if token["special"]}

    @property
    def end(self) -> str:
        """Return the special token at the end of a document; raise ValueError without any."""
        for token in (END_OF_TEXT, self.roles.get("eos_token")):
            if token in self.special:
                return str(token)
        raise ValueError(
            f"no special token ends a document; allowed is a vocabulary with {END_OF_TEXT} or an "
            "eos_token"
        )

    @property
    def split(self) -> str | None:
        """Return llama.cpp's name of the pre-tokenizer; None for an unknown one."""
        step = self.content["pre_tokenizer"] or {}
        steps = step.get("pretokenizers", [step])
        known = [
            {**part, **({"trim_offsets": True} if "trim_offsets" in part else {})} for part in steps
        ]
        return next((name for name, split in SPLITS.items() if known == list(split)), None)

    @property
    def merges(self) -> list[Spelled]:
        """Return the merges of a byte pair encoding; empty for any other model."""
        return [(left, right) for left, right in self.content["model"].get("merges", [])]

    def is_gpt2(self) -> bool:
        """Return whether the tokenizer is GPT-2's form, which tiktoken reads exactly."""
        model, added = self.content["model"], self.content["added_tokens"]
        return (
            model["type"] == "BPE"
            and self.split == "gpt-2"
            and self.content["normalizer"] is None
            and not any(model.get(flag) for flag in ("byte_fallback", "ignore_merges", "dropout"))
            and [token["content"] for token in added] == [END_OF_TEXT]
            and {**model["vocab"], END_OF_TEXT: added[0]["id"]}
            == {token: index for index, token in enumerate(gpt2_tokens(self.merges))}
        )


def read(folder: Path) -> Definition:
    """Read the definition in a folder; raise ValueError naming the file and the mistake."""
    path = folder / "tokenizer.json"
    content = read_object(path)
    checked(_Outline, content, path)
    content = _with_added_tokens(content, folder)
    roles = read_roles(folder)
    try:
        return Definition.of(content, roles)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


# The fields that we read of each file; the library checks the rest of tokenizer.json.


@dataclass(frozen=True)
class _Added:
    """An added token of `tokenizer_config.json`."""

    content: str
    special: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True


@dataclass(frozen=True)
class _AddedWithId(_Added):
    """An added token of `tokenizer.json`."""

    id: Annotated[int, Field(ge=0, le=LARGEST_ID)] = 0


@dataclass(frozen=True)
class _Outline:
    """A `tokenizer.json`."""

    model: dict[str, Any]
    added_tokens: list[_AddedWithId] | None = None


@dataclass(frozen=True)
class _Named:
    """A token by its content."""

    content: str


@dataclass(frozen=True)
class _NamedTemplate:
    """One of several chat templates."""

    name: str
    template: str


Token = str | _Named | None


@dataclass(frozen=True)
class _Settings:
    """A `tokenizer_config.json`, or a `special_tokens_map.json`."""

    bos_token: Token = None
    eos_token: Token = None
    pad_token: Token = None
    unk_token: Token = None
    additional_special_tokens: list[Token] | dict[str, Token] | None = None
    extra_special_tokens: list[Token] | dict[str, Token] | None = None
    added_tokens_decoder: dict[Annotated[str, Field(pattern=r"^\d{1,7}$")], _Added] | None = None
    chat_template: str | list[_NamedTemplate] | None = None


def _read_settings(path: Path) -> dict[str, Any]:
    """Read a file of tokens and settings, empty if missing."""
    content = read_object(path) if path.is_file() else {}
    checked(_Settings, content, path)
    return content


def _with_added_tokens(content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the content with the added tokens of the other files, in the order of their ids."""
    added = {token["content"]: token for token in content.get("added_tokens") or []}
    config = _read_settings(folder / "tokenizer_config.json")
    path = folder / "added_tokens.json"
    plain = read_object(path) if path.is_file() else {}
    checked(dict[str, Annotated[int, Field(ge=0, le=LARGEST_ID)]], plain, path)
    for text, index in plain.items():
        added.setdefault(text, {"id": index, "content": text, **ADDED, "special": False})
    for index, token in (config.get("added_tokens_decoder") or {}).items():
        entry = {"id": int(index), **ADDED, "special": False, **token}
        entry.pop("__type", None)
        added[token["content"]] = entry
    for text in _named(config) | _named(_read_settings(folder / "special_tokens_map.json")):
        if text in added:
            added[text] = {**added[text], "special": True}
    return {**content, "added_tokens": sorted(added.values(), key=lambda token: int(token["id"]))}


def _named(content: Mapping[str, Any]) -> set[str]:
    """Return all tokens with a role; Hugging Face's tools treat them as special."""
    values = [value for name, value in content.items() if name.endswith("_token")]
    for name in ("additional_special_tokens", "extra_special_tokens"):
        more = content.get(name) or []
        values += more.values() if isinstance(more, dict) else more
    texts = (value.get("content") if isinstance(value, dict) else value for value in values)
    return {text for text in texts if isinstance(text, str)}


def read_roles(folder: Path) -> dict[str, str]:
    """Return the special tokens by their roles, from a folder's files."""
    roles: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        content = _read_settings(folder / name)
        for role in ROLES:
            token = content.get(role)
            text = token["content"] if isinstance(token, dict) else token
            roles |= {role: text} if text else {}
    return roles


def read_stop_ids(folder: Path) -> tuple[int, ...]:
    """Return the ids that end a text by a folder's configs, most important first.

    Generation reads `generation_config.json`; `config.json` may name further ids.
    """
    ids: dict[int, None] = {}
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        value = read_object(path).get("eos_token_id") if path.is_file() else None
        listed = checked(int | list[int] | None, value, f"{path}: eos_token_id")
        ids |= dict.fromkeys([listed] if isinstance(listed, int) else listed or [])
    return tuple(index for index in ids if index >= 0)  # some configs mark a missing id by -1


def read_chat_template(folder: Path) -> str | None:
    """Return a folder's chat template: a file, or an entry of `tokenizer_config.json`."""
    path = folder / "tokenizer_config.json"
    template = _read_settings(path).get("chat_template")
    if (folder / "chat_template.jinja").is_file():
        return read_text(folder / "chat_template.jinja")
    if isinstance(template, list):  # several templates by name
        named = {entry["name"]: entry["template"] for entry in template}
        if "default" not in named:
            raise ValueError(
                f"{path}: the chat templates are {', '.join(named)}; allowed is a single template, "
                "or several with a template named default"
            )
        template = named["default"]
    return template


def byte_level(
    tokens: Sequence[str],
    merges: Sequence[Spelled],
    special: Sequence[str],
    *,
    split: str,
    roles: Mapping[str, str],
) -> Definition:
    """Return the definition of a byte-level byte pair encoding, by tokens in order of their ids.

    Raises ValueError for duplicate tokens, and for merges of unknown tokens.
    """
    ids = {token: index for index, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        duplicate = next(token for index, token in enumerate(tokens) if ids[token] != index)
        raise ValueError(f"the vocabulary holds token {duplicate!r} twice; allowed is once")
    for left, right in merges:
        if not {left, right, left + right} <= ids.keys():
            raise ValueError(
                f"merge {left + ' ' + right!r} joins or makes a token outside of the vocabulary; "
                "allowed are merges of known tokens into a known token"
            )
    steps = [dict(step) for step in SPLITS[split]]
    one = steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}
    added = [
        {"id": ids[t], "content": t, **ADDED, "normalized": False, "special": True} for t in special
    ]
    content = {
        "version": "1.0",
        "added_tokens": sorted(added, key=lambda token: ids[str(token["content"])]),
        "pre_tokenizer": one,
        "decoder": {**BYTE_LEVEL, "use_regex": True},
        "model": {"type": "BPE", "vocab": ids, "merges": [list(merge) for merge in merges]},
    }
    return Definition.of(content, roles)


def config(definition: Definition, context_length: int) -> dict[str, Any]:
    """Return the content of `tokenizer_config.json`.

    Hugging Face's classifiers and batches need a padding token, with or without a role.
    """
    fixed = {
        "model_max_length": context_length,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
    }
    if definition.is_gpt2():
        roles = dict.fromkeys(ROLES, END_OF_TEXT)
        return {**fixed, **roles, "tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}
    end = definition.end
    roles = {"eos_token": end, "pad_token": end, **definition.roles}
    return {**fixed, **roles, "tokenizer_class": "PreTrainedTokenizerFast"}

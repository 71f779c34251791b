"""A tokenizer as Hugging Face's folders hold it: `tokenizer.json` and what stands beside it.

The format can say far more than this project computes; what it may say here is listed below,
and anything else is refused, since it would give other ids without any sign of it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptmill.files import read_json
from gptmill.tokenizer.vocabulary import (
    ROLES,
    SPELLING,
    Spelled,
    Vocabulary,
    by_id,
)

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
OFFSETS = "trim_offsets"  # where tokens lie in the text; no id depends on it
MODEL = {
    "type": ("BPE",),
    "dropout": (None,),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (False,),
    "ignore_merges": (False,),
}
ADDED = {"special": True, "single_word": False, "lstrip": False, "rstrip": False}


def read(folder: Path) -> Vocabulary:
    """Read the vocabulary in a folder's `tokenizer.json`, the roles of special tokens beside it.

    Raises ValueError where the file asks for what this project does not compute.
    """
    path = folder / "tokenizer.json"
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ValueError(f"{path} is no tokenizer: it is not a JSON object with a `model`")
    digits = _check(path, content)
    model, added = content["model"], content.get("added_tokens") or []
    special = {token["content"]: token["id"] for token in added}
    roles = {role: token for role, token in read_roles(folder).items() if token in special}
    try:
        return Vocabulary(
            by_id({**model["vocab"], **special}),
            tuple(_merge(merge) for merge in model["merges"]),
            frozenset(special),
            digits,
            roles,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _merge(given: str | list[str]) -> Spelled:
    parts = given.split(" ") if isinstance(given, str) else given
    if len(parts) != 2:
        raise ValueError(f"{given!r} is not a merge; allowed are two tokens")
    return parts[0], parts[1]


def _check(path: Path, content: Mapping[str, Any]) -> bool:
    """Refuse what is not computed here; return whether each digit is taken by itself."""
    model = content["model"]
    for name, allowed in MODEL.items():
        if model.get(name, allowed[0]) not in allowed:
            raise _refused(path, f"model.{name}", model[name], repr(allowed[0]))
    if model.get("unk_token") and not model["vocab"].keys() >= set(SPELLING.values()):
        raise _refused(path, "model.unk_token", model["unk_token"], "None")
    for token in content.get("added_tokens") or []:
        for name, value in ADDED.items():
            if token.get(name, False) is not value:
                place = f"{name} of the added token {token['content']!r}"
                raise _refused(path, place, token.get(name), repr(value))
    if content.get("normalizer") is not None:
        raise _refused(path, "normalizer", content["normalizer"], "None")
    if not _is_harmless(content.get("post_processor")):
        raise _refused(path, "post_processor", content["post_processor"], "one that adds no token")
    if (content.get("decoder") or {}).get("type") != "ByteLevel":
        raise _refused(path, "decoder", content.get("decoder"), "ByteLevel")
    return _reads_digits(path, content.get("pre_tokenizer"))


def _is_harmless(given: Mapping[str, Any] | None) -> bool:
    """Return whether a step after the ids leaves them as they are."""
    if given is None or given["type"] == "ByteLevel":
        return True
    return given["type"] == "TemplateProcessing" and not given["special_tokens"]


def _reads_digits(path: Path, given: Mapping[str, Any] | None) -> bool:
    steps = [given] if given is None or given["type"] != "Sequence" else given["pretokenizers"]
    found = [_without_defaults(step) for step in steps]
    if found not in ([BYTE_LEVEL], [DIGITS, BYTE_LEVEL]):
        allowed = (
            "GPT-2's split (ByteLevel without a prefix space), alone or after Digits one by one"
        )
        raise _refused(path, "pre_tokenizer", given, allowed)
    return found[0] == DIGITS


def _without_defaults(step: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a step as it is compared: what it leaves out is said, what changes no id is not."""
    if step is None:
        return {}
    default = {"use_regex": True} if step["type"] == "ByteLevel" else {}
    return {**default, **{name: value for name, value in step.items() if name != OFFSETS}}


def _refused(path: Path, place: str, given: Any, allowed: str) -> ValueError:
    return ValueError(f"{path}: {place} is {given!r}, which is not supported; allowed is {allowed}")


def read_roles(folder: Path) -> dict[str, str]:
    """Return which special tokens begin, end and fill up texts, as a folder's files say."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        content = read_json(folder / name) if (folder / name).is_file() else {}
        for role in ROLES:
            token = content.get(role)
            text = token["content"] if isinstance(token, dict) else token
            found |= {role: text} if text else {}
    return found


def read_chat_template(folder: Path) -> str | None:
    """Return a folder's chat template: its own file, or an entry of `tokenizer_config.json`."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    path = folder / "tokenizer_config.json"
    given = read_json(path).get("chat_template") if path.is_file() else None
    if isinstance(given, list):  # several by name
        named = {entry["name"]: entry["template"] for entry in given}
        if "default" not in named:
            raise ValueError(
                f"{path}: its chat templates are {', '.join(named)}; allowed are one alone, or "
                "several of which one is named default"
            )
        given = named["default"]
    return given


def content(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return what `tokenizer.json` says of a vocabulary."""
    split = {**BYTE_LEVEL, OFFSETS: True}
    steps = {"type": "Sequence", "pretokenizers": [DIGITS, split]} if vocabulary.digits else split
    special = [token for token in vocabulary.tokens if token in vocabulary.special]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": vocabulary.ids[token], "content": token, "normalized": False, **ADDED}
            for token in special
        ],
        "normalizer": None,
        "pre_tokenizer": steps,
        "post_processor": None,
        "decoder": split,
        "model": {
            **{name: allowed[0] for name, allowed in MODEL.items()},
            "unk_token": None,
            "fuse_unk": False,
            "vocab": vocabulary.ids,
            "merges": [list(merge) for merge in vocabulary.merges],
        },
    }


def config(vocabulary: Vocabulary, context_length: int) -> dict[str, Any]:
    """Return what `tokenizer_config.json` says: the class that opens it, the special tokens.

    Hugging Face's classifiers and batches need a token that fills up, whether one was named or not.
    """
    fixed = {
        "model_max_length": context_length,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
    }
    if vocabulary.is_gpt2:
        roles = dict.fromkeys(ROLES, vocabulary.end)
        return {**fixed, **roles, "tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}
    roles = {"eos_token": vocabulary.end, "pad_token": vocabulary.end, **vocabulary.roles}
    return {**fixed, **roles, "tokenizer_class": "PreTrainedTokenizerFast"}

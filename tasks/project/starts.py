"""The vocabulary of the text and the first weights of pretraining, and whether they fit."""

from collections.abc import Mapping
from typing import Any

GPT2, OWN, WEIGHTS = "data/bpe", "data/text", "data/weights/"
"""Places of GPT-2's vocabulary, of the text behind an own vocabulary, and of all weights."""
RANDOM = "random"


def check_start(params: Mapping[str, Any]) -> None:
    """Raise ValueError for a vocabulary and first weights that do not fit each other.

    Missing keys and values other than text are left to the check of each section.
    """
    vocabulary, start = _text(params, "tokenize", "vocabulary"), _text(params, "pretrain", "start")
    if vocabulary is not None and not (vocabulary in (GPT2, OWN) or _is_weights(vocabulary)):
        raise ValueError(
            f"params.yaml: tokenize.vocabulary is {vocabulary}; allowed are {GPT2} (GPT-2's), "
            f"{WEIGHTS}NAME (of weights) and {OWN} (learned from the text)"
        )
    if start is None or start == RANDOM:
        return
    if not _is_weights(start):
        raise ValueError(
            f"params.yaml: pretrain.start is {start}; allowed are {RANDOM}, and {WEIGHTS}NAME, to "
            "continue the training of weights"
        )
    if vocabulary != start:
        raise ValueError(
            f"params.yaml: pretrain.start is {start}, but tokenize.vocabulary is {vocabulary}: "
            f"weights know only their own vocabulary; set tokenize.vocabulary to {start}, or "
            f"pretrain.start to {RANDOM}"
        )


def _text(params: Mapping[str, Any], section: str, key: str) -> str | None:
    content = params.get(section)
    value = content.get(key) if isinstance(content, dict) else None
    return value if isinstance(value, str) else None


def _is_weights(path: str) -> bool:
    return path.startswith(WEIGHTS) and path != WEIGHTS and ".." not in path.split("/")

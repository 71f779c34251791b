"""Rows of instruction fine-tuning as tokens, with the tokens that count in the loss marked."""

from collections.abc import Sequence
from itertools import groupby

from gptmill.finetuning.instruction_rows import Masked, Record, conversation, counted_spans
from gptmill.tokenizer.chat_template import Template
from gptmill.tokenizer.tokenizer import Tokenizer

Tokens = Sequence[tuple[str, bool]]
"""The text of each token, and whether the token counts in the loss."""
PLAIN, COUNTED = ("\x1b[2m", "\x1b[7;2m"), ("\x1b[32;4m", "\x1b[7;32;4m")
"""Colours of tokens in turn, so that neighbours differ."""


def marked(
    record: Record, tokenizer: Tokenizer, template: Template, *, masked: Masked
) -> list[tuple[str, bool]]:
    """Return the tokens of a record."""
    ids, answers = template.encode_conversation(tokenizer, conversation(record, template))
    spans = counted_spans(answers, masked, len(ids))
    counted = {k for start, stop in spans for k in range(start, stop)}
    return [(tokenizer.decode([index]), k in counted) for k, index in enumerate(ids)]


def coloured(tokens: Tokens) -> str:
    """Return tokens in the colours of a terminal; a line end stays visible."""
    return "".join(
        f"{(COUNTED if is_counted else PLAIN)[k % 2]}{_visible(text)}\x1b[0m{_line_end(text)}"
        for k, (text, is_counted) in enumerate(tokens)
    )


def bracketed(tokens: Tokens) -> str:
    """Return tokens between bars, with each counted stretch in double brackets."""
    stretches = []
    for is_counted, group in groupby(tokens, key=lambda token: token[1]):
        text = "|".join(f"{_visible(text)}{_line_end(text)}" for text, _ in group)
        stretches.append(f"[[{text}]]" if is_counted else text)
    return "".join(stretches)


def _visible(text: str) -> str:
    """Return text without control characters, which could change the terminal."""
    return "".join(c if c.isprintable() else "\u23ce" if c == "\n" else "\ufffd" for c in text)


def _line_end(text: str) -> str:
    return "\n" if text.endswith("\n") else ""

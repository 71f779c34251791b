"""Chat templates turn messages into the ids that a model was trained on.

A template is Jinja text from a model's folder. Rendering uses a process with limits
(template_renderer.py), and the settings and helpers of Hugging Face's `apply_chat_template`, so
ids are equal, with an intended exception: a special token spelled out inside a message stays plain
text here, while with `apply_chat_template` the token ends the message, and the writer can speak in
a different role.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from os.path import commonprefix
from pathlib import Path
from typing import Any, NamedTuple, Self

from gptmill.tokenizer.huggingface import read_chat_template, read_roles, read_stop_ids
from gptmill.tokenizer.template_process import PROCESS
from gptmill.tokenizer.tokenizer import Tokenizer
from gptmill.tokenizer.vocabulary import longest_first

Messages = Sequence[Mapping[str, Any]]
"""Each message has a `role` and a `content`; a template may read further keys."""

PRIVATE_USE = range(0xE000, 0xF900)


class Span(NamedTuple):
    """The place of an answer among the ids of a conversation, with the stop id."""

    start: int
    stop: int
    ended: bool
    """Whether the template writes a stop id after the answer."""


class Conversation(NamedTuple):
    """The ids of a conversation, and the spans of the answers."""

    ids: list[int]
    answers: tuple[Span, ...]


@dataclass(frozen=True)
class Template:
    """A chat template with the model's special tokens and stop ids."""

    source: str
    roles: Mapping[str, str] = field(default_factory=dict)
    """Special tokens by role (`eos_token` ...), as variables of the template."""
    stops: frozenset[int] = frozenset()
    """Further ids that end an answer, besides the tokenizer's own."""
    name: str = field(default="the chat template", compare=False)
    """The template in error messages, with folder and file."""

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read the chat template of a Hugging Face folder; return None without a template."""
        is_file = (folder / "chat_template.jinja").is_file()
        file = "chat_template.jinja" if is_file else "tokenizer_config.json"
        name = f"the chat template in {folder.resolve().name}/{file}"
        source = read_chat_template(folder)
        if source is None:
            return None
        return cls(source, read_roles(folder), frozenset(read_stop_ids(folder)), name)

    def render(self, messages: Messages, add_generation_prompt: bool = True) -> str:
        """Render messages to text, as `apply_chat_template` does.

        With `add_generation_prompt`, the text ends at the start of the model's answer. Raises
        ValueError if the template refuses the messages, is faulty or exceeds a limit.
        """
        reply = PROCESS.render(
            self.source,
            {
                **self.roles,
                "messages": [dict(message) for message in messages],
                "tools": None,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
            },
        )
        if "error" in reply:
            line = "" if reply["line"] is None else f", line {reply['line']},"
            raise ValueError(f"{self.name}{line} {reply['error']}")
        text: str = reply["text"]
        return text

    def encode(
        self, tokenizer: Tokenizer, messages: Messages, add_generation_prompt: bool = True
    ) -> list[int]:
        """Return the ids of messages; only the template itself can write special tokens.

        Each answer is encoded separately from the text before, as the model writes an answer.
        """
        escaping = SpecialTokenEscaping.of(tokenizer, self.source, messages)
        escaped = escaping.escape(messages)
        text = self.render(escaped, add_generation_prompt)
        pieces = _cut(text, self._answer_starts(escaped, text).values())
        return [index for piece in pieces for index in escaping.encode(tokenizer, piece)]

    def encode_conversation(self, tokenizer: Tokenizer, messages: Messages) -> Conversation:
        """Return the ids of a conversation that ends in an answer, and the span of each answer.

        The ids before an answer are those of `encode` for the messages before the answer. Text of
        the template after the last stop id is dropped. An earlier answer that the template renders
        differently from a last answer has no span. Raises ValueError if the rendered last answer
        does not directly follow the prompt.
        """
        escaping = SpecialTokenEscaping.of(tokenizer, self.source, messages)
        escaped = escaping.escape(messages)
        text = self.render(escaped, add_generation_prompt=False)
        starts = self._answer_starts(escaped, text)
        if len(escaped) - 1 not in starts:
            raise ValueError(
                "the chat template renders a conversation with the answer differently from the "
                "prompt alone; allowed is a template with the prompt as a prefix"
            )
        ids: list[int] = []
        answers: list[Span] = []
        for piece, own in self._pieces(escaped, text, starts):
            encoded = escaping.encode(tokenizer, piece)
            if own is not None:
                size, ended = self._until_stop(tokenizer, escaping.encode(tokenizer, own))
                answers.append(Span(len(ids), len(ids) + size, ended))
            ids += encoded
        return Conversation(ids[: answers[-1].stop], tuple(answers))

    def _pieces(
        self, messages: Messages, text: str, starts: Mapping[int, int]
    ) -> Iterator[tuple[str, str | None]]:
        """Yield the text up to the first answer, then from each answer to the next.

        Beside each answer's piece is the part of the answer's own message, without later messages.
        """
        first, *others = _cut(text, starts.values())
        yield first, None
        for piece, (index, start) in zip(others, starts.items(), strict=True):
            ended = self.render(messages[: index + 1], add_generation_prompt=False)
            yield piece, commonprefix([piece, ended[start:]])  # noqa: RUF071 (letters)

    def _until_stop(self, tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[int, bool]:
        """Return the number of ids up to the first stop id, and whether there is a stop id."""
        stops = self.stop_ids(tokenizer)
        end = next((k for k, index in enumerate(ids) if index in stops), None)
        return (len(ids), False) if end is None else (end + 1, True)

    def _answer_starts(self, messages: Messages, text: str) -> dict[int, int]:
        """Return the offset of each answer in the rendered text, by the index of the message.

        An answer whose prompt is not a prefix of the text is left out.
        """
        asked = [k for k, message in enumerate(messages) if message.get("role") == "assistant"]
        prompts = {k: self.render(messages[:k]) for k in asked if k}
        return {k: len(prompt) for k, prompt in prompts.items() if text.startswith(prompt)}

    def encode_exchange(
        self, tokenizer: Tokenizer, messages: Messages
    ) -> tuple[list[int], list[int]]:
        """Return the ids of the prompt, and of the last message, an answer, up to its stop id.

        Raises ValueError where `encode_conversation` does, and for an answer without a stop id.
        """
        conversation = self.encode_conversation(tokenizer, messages)
        last = conversation.answers[-1]
        if not last.ended:
            stops = self.stop_ids(tokenizer)
            raise ValueError(
                "the chat template writes no stop token after an answer; allowed are "
                f"{', '.join(sorted(tokenizer.decode([index]) for index in stops))}"
            )
        return conversation.ids[: last.start], conversation.ids[last.start :]

    def accepted(self, messages: Messages) -> list[dict[str, Any]]:
        """Return messages in roles that the template accepts.

        Where the template has no system role, the system message opens the first user message.
        """
        chat = [dict(message) for message in messages]
        if chat[0]["role"] != "system":
            return chat
        try:
            self.render(chat)
        except ValueError:
            system, user, *others = chat
            content = f"{system['content']}\n\n{user['content']}"
            return [{"role": "user", "content": content}, *others]
        return chat

    def end_id(self, tokenizer: Tokenizer) -> int:
        """Return the stop id that the template writes after an answer."""
        sample = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        return self.encode_exchange(tokenizer, sample)[1][-1]

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Return all ids that end an answer: the tokenizer's and the folder's."""
        return self.stops | {tokenizer.eos_id}


def fit_conversation(
    messages: Messages, template: Template, tokenizer: Tokenizer, *, longest: int
) -> tuple[list[int], int]:
    """Return the ids of the last turns that fit, and the number of dropped turns.

    A turn is a user's message and the answer. The oldest turns are dropped until the prompt has at
    most `longest` ids; a system message at the start always stays. Raises ValueError if the last
    message alone is too long.
    """
    system = list(messages[:1]) if messages[0]["role"] == "system" else []
    turns = list(messages[len(system) :])
    starts = [index for index, message in enumerate(turns) if message["role"] == "user"]
    for dropped, start in enumerate(starts):
        ids = template.encode(tokenizer, [*system, *turns[start:]])
        if len(ids) <= longest:
            return ids, dropped
    raise ValueError(
        f"the message makes a prompt of {len(ids)} tokens: at most {longest} fit the model"
    )


def _cut(text: str, offsets: Iterable[int]) -> list[str]:
    """Return the pieces of a text between ascending offsets."""
    return [text[start:stop] for start, stop in pairwise([0, *offsets, len(text)])]


# ---- special tokens inside messages


@dataclass(frozen=True)
class SpecialTokenEscaping:
    """Escapes special tokens that messages spell out.

    The first character of a spelled-out token is replaced by a stand-in, so that the token is not
    recognized, and restored for encoding. The start of a token at the end of a text is escaped
    too, because the template could complete the token. Texts without tokens stay unchanged.
    """

    stand_ins: Mapping[str, str]
    spelled_out: re.Pattern[str]

    @classmethod
    def of(cls, tokenizer: Tokenizer, source: str, messages: Messages) -> Self:
        """Choose stand-ins from the private use area, absent from template and messages."""
        taken = {*source, *json.dumps(_each_text(messages, str), ensure_ascii=False)}
        free = (chr(code) for code in PRIVATE_USE if chr(code) not in taken)
        firsts = sorted({token[0] for token in tokenizer.special_ids})
        stand_ins = dict(zip(firsts, free, strict=False))
        if len(stand_ins) < len(firsts):
            raise ValueError("the messages hold every character of Unicode's private use area")
        return cls(stand_ins, _spelled_out(frozenset(tokenizer.special_ids)))

    def escape(self, messages: Messages) -> list[Any]:
        """Return the messages with escaped texts, in keys and values."""
        return [_each_text(message, self._escape_text) for message in messages]

    def _escape_text(self, text: str) -> str:
        return self.spelled_out.sub(lambda match: self.stand_ins[match[0]], text)

    def encode(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """Return the ids of a rendered text, with the stand-ins as plain text."""
        shown = {ord(stand_in): first for first, stand_in in self.stand_ins.items()}
        ids: list[int] = []
        for part, is_special in tokenizer.parts(text):
            if is_special:
                ids.append(tokenizer.special_ids[part])
            else:
                ids.extend(tokenizer.encode(part.translate(shown)))
        return ids


@cache
def _spelled_out(special: frozenset[str]) -> re.Pattern[str]:
    """Return a pattern for the first characters of special tokens, and of starts at the end."""
    whole = [re.escape(token) for token in longest_first(special)]
    starts = {token[:size] for token in special for size in range(1, len(token))}
    cut = "|".join(re.escape(start) for start in longest_first(starts)) or "(?!)"
    return re.compile(rf"(?=(?:{'|'.join(whole)})|(?:{cut})\Z).", re.DOTALL)


def _each_text(value: Any, change: Callable[[str], Any]) -> Any:
    """Return a JSON value with a function applied to every text, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_each_text(key, change): _each_text(item, change) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_each_text(item, change) for item in value]
    return value

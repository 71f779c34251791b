"""Answers in OpenAI's format: whole or as server-sent events."""

import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from gptmill.generation.completion import Delta, Finish
from gptmill.serving.requests import Work

AnswerKind = Literal["chat", "text"]

DONE = b"data: [DONE]\n\n"


def event(content: dict[str, Any]) -> bytes:
    """Return one server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n".encode()


@dataclass
class Answer:
    """A growing answer.

    Collects the decoder's deltas and formats the responses and events of the API.
    """

    form: AnswerKind
    model: str
    work: Work
    created: int = field(default_factory=lambda: int(time.time()))
    key: str = field(default_factory=lambda: secrets.token_hex(12))
    new_tokens: int = 0
    texts: list[list[str]] = field(init=False)
    finishes: list[Finish | None] = field(init=False)

    def __post_init__(self) -> None:
        self.texts = [[] for _ in self.work.prompts]
        self.finishes = [None for _ in self.work.prompts]

    def take(self, deltas: list[Delta]) -> None:
        """Add the deltas of a step."""
        for delta in deltas:
            self.new_tokens += delta.id is not None
            self.texts[delta.row].append(delta.text)
            self.finishes[delta.row] = delta.finish or self.finishes[delta.row]

    def whole(self) -> dict[str, Any]:
        """Return the finished answer."""
        choices = [
            self._choice(row, self._content("".join(texts), streamed=False), finish)
            for row, (texts, finish) in enumerate(zip(self.texts, self.finishes, strict=True))
        ]
        return {**self._head(streamed=False), "choices": choices, "usage": self._usage()}

    def opening(self) -> Iterator[bytes]:
        """Yield the opening events: in a chat, the assistant's role."""
        if self.form == "chat":
            content = {"delta": {"role": "assistant", "content": ""}}
            for row in range(len(self.texts)):
                yield self._chunk([self._choice(row, content, None)])

    def events(self, deltas: list[Delta]) -> Iterator[bytes]:
        """Yield the events of a step: texts and finish reasons."""
        for delta in deltas:
            if delta.text:
                content = self._content(delta.text, streamed=True)
                yield self._chunk([self._choice(delta.row, content, None)])
            if delta.finish:
                content = {"delta": {}} if self.form == "chat" else {"text": ""}
                yield self._chunk([self._choice(delta.row, content, delta.finish)])

    def closing(self) -> Iterator[bytes]:
        """Yield the events after the last text."""
        if self.work.include_usage:
            yield event({**self._head(streamed=True), "choices": [], "usage": self._usage()})
        yield DONE

    def _head(self, *, streamed: bool) -> dict[str, Any]:
        names = {"chat": "chat.completion.chunk" if streamed else "chat.completion"}
        return {
            "id": f"{'chatcmpl' if self.form == 'chat' else 'cmpl'}-{self.key}",
            "object": names.get(self.form, "text_completion"),
            "created": self.created,
            "model": self.model,
        }

    def _chunk(self, choices: list[dict[str, Any]]) -> bytes:
        usage = {"usage": None} if self.work.include_usage else {}
        return event({**self._head(streamed=True), "choices": choices, **usage})

    def _content(self, text: str, *, streamed: bool) -> dict[str, Any]:
        if self.form == "text":
            return {"text": text}
        if streamed:
            return {"delta": {"content": text}}
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _choice(self, row: int, content: dict[str, Any], finish: Finish | None) -> dict[str, Any]:
        return {"index": row, **content, "logprobs": None, "finish_reason": finish}

    def _usage(self) -> dict[str, int]:
        prompt_tokens = self.work.prompt_tokens
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": self.new_tokens,
            "total_tokens": prompt_tokens + self.new_tokens,
        }

"""Questions for an assistant: a conversation, a reference answer and an optional check.

A file has a JSON object a line. A row with a check is judged by rule (see
`gptmill.evaluation.checks`); a row without a check by the likelihood of the reference alone.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from gptmill.files import parse_json


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must have text")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]
Words = Annotated[tuple[Text, ...], Field(min_length=1)]


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Message(_Checked):
    """A message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Text


class Check(_Checked):
    """Rules for an answer; an answer passes if all rules hold."""

    contains_any: Words | None = None
    contains_all: Words | None = None
    excludes: Words | None = None
    matches: Text | None = Field(None, description="a regular expression, found anywhere")
    number: float | None = None
    items: int | None = Field(None, gt=0, description="number of list items")
    max_words: int | None = Field(None, gt=0)
    refuses: bool | None = None

    @field_validator("matches")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"must be a regular expression ({error})") from None
        return pattern

    @model_validator(mode="after")
    def _has_a_rule(self) -> Self:
        if not self.rules():
            raise ValueError(f"must have a rule, one of {', '.join(type(self).model_fields)}")
        return self

    def rules(self) -> dict[str, Any]:
        """Return the given rules by name."""
        return self.model_dump(exclude_none=True)


class Question(_Checked):
    """A conversation that ends with the user, and the reference answer."""

    id: Text
    kind: Text
    messages: tuple[Message, ...]
    reference: Text
    check: Check | None = None

    @field_validator("messages")
    @classmethod
    def _alternates(cls, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        roles = [message.role for message in messages]
        turns = roles[1:] if roles[:1] == ["system"] else roles
        expected = [("user", "assistant")[number % 2] for number in range(len(turns))]
        if len(turns) % 2 == 0 or turns != expected:
            raise ValueError(
                "must be user and assistant in turn, with the user first and last, after an "
                f"optional system message; the roles are {', '.join(roles) or 'none'}"
            )
        return messages

    @property
    def chat(self) -> list[dict[str, str]]:
        """Return the messages in the form of chat templates."""
        return [message.model_dump() for message in self.messages]

    @property
    def text(self) -> str:
        """Return all messages and the reference, as plain text."""
        return "\n".join([*(message.content for message in self.messages), self.reference])

    @property
    def prompt(self) -> str:
        """Return the user's last message."""
        return self.messages[-1].content


def read_questions(path: Path) -> list[Question]:
    """Read a JSON Lines file of questions.

    Raises ValueError, naming the line and the field, for a line that is no question, and for two
    lines with the same id or the same messages.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); save the file as UTF-8") from None
    questions = [
        _question(f"{path}, line {number}", line)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not questions:
        raise ValueError(f"{path} has no question; a line is a JSON object with id, kind, ...")
    _check_unique(path, "id", [question.id for question in questions])
    _check_unique(path, "messages", [str(question.messages) for question in questions])
    return questions


def _question(where: str, line: str) -> Question:
    parse_json(line, where)
    try:
        return Question.model_validate_json(line)
    except ValidationError as error:
        raise ValueError(f"{where}: {_sentence(error)}") from None


def _sentence(error: ValidationError) -> str:
    """Return the first fault in words: the field, the value and the allowed values."""
    fault = error.errors(include_url=False)[0]
    field = ".".join(map(str, fault["loc"])) or "the line"
    if fault["type"] == "missing":
        return f"{field} is missing; a question has {', '.join(Question.model_fields)}"
    if fault["type"] == "extra_forbidden":
        owners: dict[str, type[_Checked]] = {"check": Check, "messages": Message}
        owner = owners.get(str(fault["loc"][0]), Question)
        return f"{field} is unknown; allowed are {', '.join(owner.model_fields)}"
    if fault["type"] == "value_error":
        return f"{field} {fault['ctx']['error']}"
    return f"{field}: {fault['msg'][0].lower()}{fault['msg'][1:]}, not {fault['input']!r}"


def _check_unique(path: Path, field: str, values: Sequence[str]) -> None:
    first: dict[str, int] = {}
    for number, value in enumerate(values, start=1):
        if value in first:
            raise ValueError(
                f"{path}: questions {first[value]} and {number} have the same {field}; "
                "change or remove one of the two"
            )
        first[value] = number

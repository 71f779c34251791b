"""Chat templates: how messages become the ids that a model was trained on.

A template is a Jinja text that comes with a model; it is rendered in a sandbox and with the
settings and helpers of Hugging Face's `apply_chat_template`, so that ids are the same. One
thing differs on purpose: a special token that somebody spells out inside a message stays plain
text here, while there it would end the message and let its writer speak for another.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, Self

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gptmill.files import read_json
from gptmill.tokenizer.huggingface import read_chat_template, read_roles
from gptmill.tokenizer.tokenizer import Tokenizer
from gptmill.tokenizer.vocabulary import longest_first

Messages = Sequence[Mapping[str, Any]]
"""Each has a `role` and a `content`; a template may read more."""

PRIVATE_USE = range(0xE000, 0xF900)


@dataclass(frozen=True)
class Template:
    """A chat template, the special tokens that it may write, and the ids that end an answer."""

    source: str
    roles: Mapping[str, str] = field(default_factory=dict)
    """Special tokens by what they are for: `eos_token` and its like, names in the template."""
    stops: frozenset[int] = frozenset()
    """What ends an answer besides the tokenizer's own end."""

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Read the chat template of a Hugging Face folder; None where it has none."""
        source = read_chat_template(folder)
        return None if source is None else cls(source, read_roles(folder), _read_stops(folder))

    def render(self, messages: Messages, add_generation_prompt: bool = True) -> str:
        """Return messages as one text, as `apply_chat_template` does.

        With `add_generation_prompt` it ends where the model's answer begins. Raises ValueError
        where the template refuses the messages.
        """
        try:
            return _compile(self.source).render(
                **self.roles,
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
            )
        except (jinja2.TemplateError, TypeError) as error:  # TypeError: a content that is no text
            raise ValueError(f"the chat template refuses these messages: {error}") from None

    def encode(
        self, tokenizer: Tokenizer, messages: Messages, add_generation_prompt: bool = True
    ) -> list[int]:
        """Return the ids of messages; only special tokens of the template itself are special."""
        escaping = SpecialTokenEscaping.of(tokenizer, self.source, messages)
        text = self.render(escaping.escape(messages), add_generation_prompt)
        return escaping.encode(tokenizer, text)

    def encode_exchange(
        self, tokenizer: Tokenizer, messages: Messages
    ) -> tuple[list[int], list[int]]:
        """Return the ids up to the last message, an answer, and those of the answer with its end.

        They are what a model is given and what it has to write, and so encoded apart; what the
        template writes after the answer's end is left out. Raises ValueError where the
        template writes the answer elsewhere than after its prompt, or no end.
        """
        escaping = SpecialTokenEscaping.of(tokenizer, self.source, messages)
        escaped = escaping.escape(messages)
        prompt, whole = self.render(escaped[:-1]), self.render(escaped, add_generation_prompt=False)
        if not whole.startswith(prompt):
            raise ValueError(
                "the chat template writes a conversation with its answer in another way than the "
                "prompt for that answer; allowed is a template whose conversation goes on from it"
            )
        answer = escaping.encode(tokenizer, whole[len(prompt) :])
        stops = self.stop_ids(tokenizer)
        end = next((place for place, index in enumerate(answer) if index in stops), None)
        if end is None:
            raise ValueError(
                "the chat template writes no end after an answer; allowed is one of "
                f"{', '.join(sorted(tokenizer.decode([index]) for index in stops))}"
            )
        return escaping.encode(tokenizer, prompt), answer[: end + 1]

    def end_id(self, tokenizer: Tokenizer) -> int:
        """Return the id that the template writes at the end of an answer."""
        sample = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        return self.encode_exchange(tokenizer, sample)[1][-1]

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Return the ids that end an answer: the tokenizer's end and what the folder adds."""
        return self.stops | {tokenizer.eos_id}


def _read_stops(folder: Path) -> frozenset[int]:
    path = folder / "generation_config.json"
    found = read_json(path).get("eos_token_id") if path.is_file() else None
    if isinstance(found, int):
        return frozenset([found])
    return frozenset(found or [])


# ---- special tokens inside messages


@dataclass(frozen=True)
class SpecialTokenEscaping:
    """Stand-ins for the first characters of special tokens that messages spell out.

    A spelled-out token is no longer one when it is looked for, and is itself again when its
    part of the text is encoded. So is the beginning of one at the end of a text, which a
    template could complete. Texts without any are rendered as they are.
    """

    stand_ins: Mapping[str, str]
    spelled_out: re.Pattern[str]

    @classmethod
    def of(cls, tokenizer: Tokenizer, source: str, messages: Messages) -> Self:
        """Choose characters of the private use area that neither template nor messages hold."""
        taken = {*source, *json.dumps(_each_text(messages, str), ensure_ascii=False)}
        free = (chr(code) for code in PRIVATE_USE if chr(code) not in taken)
        firsts = sorted({token[0] for token in tokenizer.special_ids})
        stand_ins = dict(zip(firsts, free, strict=False))
        if len(stand_ins) < len(firsts):
            raise ValueError("the messages hold every character of Unicode's private use area")
        return cls(stand_ins, _spelled_out(frozenset(tokenizer.special_ids)))

    def escape(self, messages: Messages) -> list[Any]:
        """Return messages in which no text, whatever its name, spells out a special token."""
        return [_each_text(message, self._escape_text) for message in messages]

    def _escape_text(self, text: str) -> str:
        return self.spelled_out.sub(lambda found: self.stand_ins[found[0]], text)

    def encode(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """Return the ids of a rendered text, in which the stand-ins are plain text."""
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
    """Return what finds the first character of each special token, or of its start at an end."""
    whole = [re.escape(token) for token in longest_first(special)]
    starts = {token[:size] for token in special for size in range(1, len(token))}
    cut = "|".join(re.escape(start) for start in longest_first(starts)) or "(?!)"
    return re.compile(rf"(?=(?:{'|'.join(whole)})|(?:{cut})\Z).", re.DOTALL)


def _each_text(value: Any, change: Callable[[str], Any]) -> Any:
    """Return a value of JSON's kinds with every text in it changed, names too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_each_text(key, change): _each_text(item, change) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_each_text(item, change) for item in value]
    return value


# ---- Jinja, as Hugging Face's templates expect it


class _Generation(Extension):
    """Reads `{% generation %}`, which marks an answer inside a template and renders as its body."""

    tags = {"generation"}  # noqa: RUF012 (the name and kind that jinja2 asks for)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@cache
def _compile(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    # strftime_now stays undefined: templates ask whether it is there, and go on without. One that
    # needs today's date is refused; it makes another prompt of the same messages every day.
    return environment.from_string(source)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON as it is: jinja2's own filter writes it for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def fit(
    messages: Messages, template: Template, tokenizer: Tokenizer, *, longest: int
) -> tuple[list[int], int]:
    """Return the ids of a conversation's end, and how many turns were left out before it.

    A turn is a user's message and the answer to it. The oldest are left out until the prompt
    has at most `longest` ids; a system message at the beginning always stays. Raises
    ValueError where the last message alone is too long.
    """
    system = list(messages[:1]) if messages[0]["role"] == "system" else []
    said = list(messages[len(system) :])
    starts = [place for place, message in enumerate(said) if message["role"] == "user"]
    for left_out, start in enumerate(starts):
        ids = template.encode(tokenizer, [*system, *said[start:]])
        if len(ids) <= longest:
            return ids, left_out
    raise ValueError(
        f"the message makes a prompt of {len(ids)} tokens: at most {longest} fit the model"
    )

"""Requests as OpenAI's API defines them, checked, and turned into what the decoder is given.

What would change the answer and is not offered here is refused, not ignored; so is what the
API does not know. What cannot change the answer is accepted and has no effect.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from gptmill.generation.completion import TextGenerator
from gptmill.generation.decoder import GenerationConfig
from gptmill.serving.errors import ApiError

COMPLETION_TOKENS = 16  # what the API writes at most where a completion's request is silent
MAX_STOPS = 4  # as in the API

# Accepted without effect: they say who asks, or how it is billed, stored or cached.
WITHOUT_EFFECT = frozenset(
    [
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    ]
)
# Parts of the API that are not offered, each with the values that ask for nothing.
NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "best_of": (None, 1),
    "echo": (None, False),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "presence_penalty": (None, 0),
    "reasoning_effort": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "top_logprobs": (None, 0),
    "verbosity": (None,),
    "web_search_options": (None,),
}


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class StreamOptions(_Checked):
    """What a stream holds besides the text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class TextPart(_Checked):
    """A part of a message; text is the only kind that is read."""

    type: Literal["text"]
    text: str


class ChatMessage(_Checked):
    """One message of a conversation. `developer` is the API's newer word for `system`."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def plain(self) -> dict[str, str]:
        """Return the message as chat templates know it."""
        parts = [self.content] if isinstance(self.content, str) else [p.text for p in self.content]
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": "".join(parts)}


class _Asked(_Checked):
    model: str
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # beyond OpenAI's API, by the names that other servers of open models have
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)


class ChatRequest(_Asked):
    """The body of `/v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)


class CompletionRequest(_Asked):
    """The body of `/v1/completions`: texts or ids; without a prompt a new document begins."""

    prompt: str | list[str] | list[int] | list[list[int]] | None = None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may ask for."""

    context_length: int
    """Of prompt and answer together; at most what the model reads at once."""
    max_prompt_tokens: int
    max_new_tokens: int
    max_answers: int = 8
    """Prompts times n."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the decoder is given. Each prompt stands in the list n times in a row."""

    prompts: list[list[int]]
    n: int
    config: GenerationConfig
    stops: list[str]
    seed: int
    stream: bool
    include_usage: bool

    @property
    def prompt_tokens(self) -> int:
        """Return how many ids were read; a prompt counts once, however large n is."""
        return sum(len(prompt) for prompt in self.prompts[:: self.n])


Request = TypeVar("Request", bound=_Asked)


def parse(body: bytes, kind: type[Request]) -> Request:
    """Read a request; raise ApiError with the parameter that is wrong."""
    try:
        content = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ApiError(400, "the body is not a JSON object")
    for name, neutral in NOT_OFFERED.items():
        if name in content and content.pop(name) not in neutral:
            message = f"{name} is not offered by this server; leave it out"
            raise ApiError(400, message, code="unsupported_parameter", param=name)
    known = {name: value for name, value in content.items() if name not in WITHOUT_EFFECT}
    try:
        return kind.model_validate(known)
    except ValidationError as error:
        raise _told(error) from None


def chat_work(asked: ChatRequest, generator: TextGenerator, limits: Limits) -> Work:
    """Return the work of a conversation, rendered as training rows were."""
    if generator.template is None:
        raise ApiError(
            400,
            f"{generator.name} has no chat template: it is no assistant; ask /v1/completions",
            code="model_not_supported",
            param="model",
        )
    if asked.max_tokens is not None and asked.max_completion_tokens is not None:
        raise ApiError(
            400, "max_tokens and max_completion_tokens mean the same; give one", param="max_tokens"
        )
    try:
        messages = [message.plain() for message in asked.messages]
        prompt = generator.template.encode(generator.tokenizer, messages)
    except ValueError as error:
        raise ApiError(400, f"messages: {error}", param="messages") from None
    wanted = asked.max_completion_tokens if asked.max_tokens is None else asked.max_tokens
    room = _room([prompt], limits, wanted, param="messages")
    return _work(asked, [prompt], limits, max_new_tokens=room if wanted is None else wanted)


def completion_work(asked: CompletionRequest, generator: TextGenerator, limits: Limits) -> Work:
    """Return the work of texts to continue."""
    prompts, wanted = _prompts(asked.prompt, generator), asked.max_tokens
    room = _room(prompts, limits, wanted, param="prompt")
    most = min(COMPLETION_TOKENS, room) if wanted is None else wanted
    return _work(asked, prompts, limits, max_new_tokens=most)


def _prompts(given: str | Sequence[Any] | None, generator: TextGenerator) -> list[list[int]]:
    if given is None or isinstance(given, str):
        given = [given or ""]
    elif given and isinstance(given[0], int):
        given = [given]
    if not given:
        raise ApiError(400, "prompt is an empty list", param="prompt")
    encode, end = generator.tokenizer.encode, generator.tokenizer.eot_id
    prompts = [encode(one) if isinstance(one, str) else list(one) for one in given]
    n_ids = generator.model.config.vocab_size
    if any(not 0 <= index < n_ids for prompt in prompts for index in prompt):
        raise ApiError(400, f"prompt has a token that is not in 0 to {n_ids - 1}", param="prompt")
    return [prompt or [end] for prompt in prompts]


def _work(asked: _Asked, prompts: list[list[int]], limits: Limits, *, max_new_tokens: int) -> Work:
    n = asked.n or 1
    if n * len(prompts) > limits.max_answers:
        message = f"n times the number of prompts is at most {limits.max_answers} on this server"
        raise ApiError(400, message, param="n")
    return Work(
        prompts=[prompt for prompt in prompts for _ in range(n)],
        n=n,
        config=_config(asked, max_new_tokens),
        stops=_stops(asked.stop),
        seed=secrets.randbits(62) if asked.seed is None else asked.seed,
        stream=bool(asked.stream),
        include_usage=bool(asked.stream_options and asked.stream_options.include_usage),
    )


def _room(prompts: list[list[int]], limits: Limits, wanted: int | None, *, param: str) -> int:
    """Return how many tokens may follow the longest prompt; raise ApiError past a limit."""
    longest, context = max(map(len, prompts)), limits.context_length
    most = min(limits.max_prompt_tokens, context - 1)
    if longest > most:
        raise ApiError(
            400,
            f"the prompt has {longest} tokens; at most {most} fit"
            f" (the context is {context} tokens, prompt and answer together)",
            code="context_length_exceeded",
            param=param,
        )
    room = min(limits.max_new_tokens, context - longest)
    if wanted is not None and wanted > room:
        raise ApiError(
            400,
            f"max_tokens is {wanted}; after a prompt of {longest} tokens at most {room} are"
            f" allowed (the context is {context}, this server's limit"
            f" {limits.max_new_tokens})",
            code="context_length_exceeded",
            param="max_tokens",
        )
    return room


def _config(asked: _Asked, max_new_tokens: int) -> GenerationConfig:
    greedy = asked.top_p == 0  # the API's other way to ask for the likeliest token
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        temperature=0.0 if greedy else 1.0 if asked.temperature is None else asked.temperature,
        top_k=asked.top_k or 0,
        top_p=1.0 if greedy or asked.top_p is None else asked.top_p,
        min_p=asked.min_p or 0.0,
        repetition_penalty=asked.repetition_penalty or 1.0,
    )


def _stops(given: str | list[str] | None) -> list[str]:
    stops = [given] if isinstance(given, str) else given or []
    if len(stops) > MAX_STOPS or not all(stops):
        message = f"stop holds up to {MAX_STOPS} strings, none of them empty"
        raise ApiError(400, message, param="stop")
    return stops


def _told(error: ValidationError) -> ApiError:
    """Return the first thing that is wrong; of a choice of types pydantic names each."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"Unrecognized request argument supplied: {place}", param=place)
    if first["type"] == "missing":
        return ApiError(400, f"you must provide {place}", param=place)
    return ApiError(400, f"{place}: {first['msg']}", param=str(first["loc"][0]))

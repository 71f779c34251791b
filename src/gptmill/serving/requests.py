"""Requests in OpenAI's format, validated and converted to decoder input.

An unsupported parameter that would change the answer is refused, not ignored. A parameter
unknown to the API is refused as well. A parameter that cannot change the answer is accepted and
has no effect.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import Field, ValidationError
from pydantic_core import from_json

from gptmill.generation.completion import TextGenerator
from gptmill.generation.decoder import GenerationConfig
from gptmill.generation.sampling import REPETITION_PENALTIES
from gptmill.serving.errors import ApiError
from gptmill.serving.messages import ChatMessage, Checked, validation_error

COMPLETION_TOKENS = 16  # the API's default for max_tokens in a completion request
MAX_STOPS = 4  # the API's limit

# Accepted without effect: parameters for identification, billing, storage and caching.
WITHOUT_EFFECT = frozenset(
    [
        "cache_control",
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
# Unsupported parameters of the API, each with its neutral values, which are accepted.
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


class StreamOptions(Checked):
    """Options for the content of a stream besides the text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class _BaseRequest(Checked):
    model: str
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # not in OpenAI's API; the names are common among servers of open models
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(
        None, ge=REPETITION_PENALTIES[0], le=REPETITION_PENALTIES[1]
    )


class ChatRequest(_BaseRequest):
    """The body of `/v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)


class CompletionRequest(_BaseRequest):
    """The body of `/v1/completions`.

    Prompts are texts or lists of token ids. Without a prompt, a new document begins.
    """

    prompt: str | list[str] | list[int] | list[list[int]] | None = None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of a single request."""

    context_length: int
    """Tokens of prompt and answer together; at most the model's context length."""
    max_prompt_tokens: int
    max_new_tokens: int
    max_answers: int = 8
    """Number of prompts times n."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """The decoder's input for a request.

    Each prompt appears in the list n times in a row.
    """

    prompts: list[list[int]]
    n: int
    config: GenerationConfig
    stops: list[str]
    seed: int
    stream: bool
    include_usage: bool

    @property
    def prompt_tokens(self) -> int:
        """Return the number of prompt tokens.

        A prompt counts once, however large n is.
        """
        return sum(len(prompt) for prompt in self.prompts[:: self.n])


Request = TypeVar("Request", bound=Checked)


def parse(body: bytes, kind: type[Request]) -> Request:
    """Parse the body of a request.

    Raises ApiError, which names the invalid parameter.
    """
    try:
        content = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ApiError(400, "the body is not a JSON object")
    for name, neutral in NOT_OFFERED.items():
        if name in content and not _is_neutral(content.pop(name), neutral):
            message = f"{name} is not supported by this server; omit the parameter"
            raise ApiError(400, message, code="unsupported_parameter", param=name)
    parameters = {name: value for name, value in content.items() if name not in WITHOUT_EFFECT}
    try:
        return kind.model_validate(parameters)
    except ValidationError as error:
        raise validation_error(error) from None


def _is_neutral(value: Any, neutral: tuple[Any, ...]) -> bool:
    """Return whether a value is neutral; 0 is not False: `logprobs: 0` asks for probabilities."""
    return any(value == one and isinstance(value, bool) is isinstance(one, bool) for one in neutral)


def chat_work(request: ChatRequest, generator: TextGenerator, limits: Limits) -> Work:
    """Return the work of a chat request.

    The conversation is rendered in the same way as the training rows.
    """
    if generator.template is None:
        raise ApiError(
            400,
            f"{generator.name} has no chat template and is not an assistant; use /v1/completions",
            code="model_not_supported",
            param="model",
        )
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise ApiError(
            400,
            "max_tokens and max_completion_tokens mean the same; set only one",
            param="max_tokens",
        )
    if len(request.messages) > limits.context_length:
        raise ApiError(
            400,
            f"the conversation has {len(request.messages)} messages; at most"
            f" {limits.context_length} are allowed, a message for each token of the context",
            code="context_length_exceeded",
            param="messages",
        )
    try:
        messages = [message.plain() for message in request.messages]
        prompt = generator.template.encode(generator.tokenizer, messages)
    except ValueError as error:
        raise ApiError(400, f"messages: {error}", param="messages") from None
    max_tokens = request.max_completion_tokens if request.max_tokens is None else request.max_tokens
    room = _room([prompt], limits, max_tokens, param="messages")
    return _work(
        request, [prompt], limits, max_new_tokens=room if max_tokens is None else max_tokens
    )


def completion_work(request: CompletionRequest, generator: TextGenerator, limits: Limits) -> Work:
    """Return the work of a completion request."""
    entries = _entries(request.prompt)
    _check_number(len(entries), request.n or 1, limits)
    prompts, max_tokens = _prompts(entries, generator), request.max_tokens
    room = _room(prompts, limits, max_tokens, param="prompt")
    most = min(COMPLETION_TOKENS, room) if max_tokens is None else max_tokens
    return _work(request, prompts, limits, max_new_tokens=most)


def _entries(prompt: str | Sequence[Any] | None) -> Sequence[Any]:
    """Return the prompts of a request, each a text or a list of ids."""
    if prompt is None or isinstance(prompt, str):
        return [prompt or ""]
    if not prompt:
        raise ApiError(400, "prompt is an empty list", param="prompt")
    return [prompt] if isinstance(prompt[0], int) else prompt


def _check_number(n_prompts: int, n: int, limits: Limits) -> None:
    if n * n_prompts > limits.max_answers:
        message = f"n times the number of prompts is at most {limits.max_answers} on this server"
        raise ApiError(400, message, param="n")


def _prompts(entries: Sequence[Any], generator: TextGenerator) -> list[list[int]]:
    encode, end = generator.tokenizer.encode_prompt, generator.tokenizer.eot_id
    prompts = [encode(entry) if isinstance(entry, str) else list(entry) for entry in entries]
    n_ids = generator.model.config.vocab_size
    if any(not 0 <= index < n_ids for prompt in prompts for index in prompt):
        raise ApiError(400, f"prompt has a token outside 0 to {n_ids - 1}", param="prompt")
    return [prompt or [end] for prompt in prompts]


def _work(
    request: _BaseRequest, prompts: list[list[int]], limits: Limits, *, max_new_tokens: int
) -> Work:
    n = request.n or 1
    _check_number(len(prompts), n, limits)
    return Work(
        prompts=[prompt for prompt in prompts for _ in range(n)],
        n=n,
        config=_config(request, max_new_tokens),
        stops=_stops(request.stop),
        seed=secrets.randbits(62) if request.seed is None else request.seed,
        stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
    )


def _room(prompts: list[list[int]], limits: Limits, max_tokens: int | None, *, param: str) -> int:
    """Return how many tokens may follow the longest prompt.

    Raises ApiError where the prompt or `max_tokens` exceeds a limit.
    """
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
    if max_tokens is not None and max_tokens > room:
        raise ApiError(
            400,
            f"max_tokens is {max_tokens}; after a prompt of {longest} tokens at most {room} are"
            f" allowed (the context is {context}, this server's limit"
            f" {limits.max_new_tokens})",
            code="context_length_exceeded",
            param="max_tokens",
        )
    return room


def _config(request: _BaseRequest, max_new_tokens: int) -> GenerationConfig:
    greedy = request.top_p == 0  # the API's second way to request the likeliest token
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        temperature=0.0 if greedy else 1.0 if request.temperature is None else request.temperature,
        top_k=request.top_k or 0,
        top_p=1.0 if greedy or request.top_p is None else request.top_p,
        min_p=request.min_p or 0.0,
        repetition_penalty=request.repetition_penalty or 1.0,
    )


def _stops(stop: str | list[str] | None) -> list[str]:
    stops = [stop] if isinstance(stop, str) else stop or []
    if len(stops) > MAX_STOPS or not all(stops):
        message = f"stop holds up to {MAX_STOPS} strings, none of them empty"
        raise ApiError(400, message, param="stop")
    return stops

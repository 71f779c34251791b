"""Messages of a conversation in OpenAI's format, and errors that name the invalid field."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from gptmill.serving.errors import ApiError

CONTENT = "allowed are a text, and a list of parts of the type text"
JSON_NAMES = {
    bool: "true or false",
    dict: "an object",
    float: "a number",
    int: "a number",
    type(None): "null or missing",
}
# Unsupported fields of the API's messages, which may be empty.
NOT_OFFERED = ("audio", "function_call", "tool_call_id", "tool_calls")
# Parameters of several types: pydantic would name the first type alone.
FORMS = {
    "prompt": "allowed are a text, a list of texts, a list of token ids, and a list of such lists",
    "stop": "allowed are a text, and a list of up to 4 texts",
}


class Checked(BaseModel):
    """A part of a request, without conversion of types."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class ChatMessage(Checked):
    """A message of a conversation.

    `developer` is the API's newer name for the role `system`. Fields without effect on the prompt,
    such as `name` and `cache_control`, are ignored.
    """

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    refusal: str | None = None
    content: str = Field(None, validate_default=True)
    audio: None = None
    function_call: None = None
    tool_call_id: None = None
    tool_calls: None = None

    @field_validator("content", mode="before")
    @classmethod
    def _text(cls, content: Any, info: ValidationInfo) -> str:
        """Return the text of a content; an assistant's content may be null."""
        if content is None and info.data.get("role") == "assistant":
            return info.data.get("refusal") or ""
        if isinstance(content, list):
            return "".join(_text_of(index, part) for index, part in enumerate(content))
        if not isinstance(content, str):
            raise _invalid(f"is {JSON_NAMES[type(content)]}; {CONTENT}")
        return content

    @field_validator(*NOT_OFFERED, mode="before")
    @classmethod
    def _nothing(cls, value: Any) -> None:
        if value:
            raise _invalid("is not supported by this server; omit the field")

    def plain(self) -> dict[str, str]:
        """Return the message in the format of chat templates."""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": self.content}


def _text_of(index: int, part: Any) -> str:
    """Return the text of a part; further fields, such as `cache_control`, are ignored."""
    content = part if isinstance(part, dict) else {}
    kind, text = content.get("type"), content.get("text")
    if kind != "text":
        raise _invalid(f"has part {index} of the type {kind!r}; {CONTENT}")
    if not isinstance(text, str):
        raise _invalid(f"has part {index} without text; {CONTENT}")
    return text


def _invalid(message: str) -> PydanticCustomError:
    return PydanticCustomError("invalid", "{message}", {"message": message})


def validation_error(error: ValidationError) -> ApiError:
    """Return an ApiError for the first invalid field, named as in `messages[0].content`."""
    first = error.errors(include_url=False)[0]
    return ApiError(400, _sentence(first), param=str(first["loc"][0]))


def _sentence(error: ErrorDetails) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]]
    location, top = "".join(parts).removeprefix("."), str(error["loc"][0])
    sentences = {
        "extra_forbidden": f"Unrecognized request argument supplied: {location}",
        "invalid": f"{location} {error['msg']}",
        "missing": f"you must provide {location}",
        "model_type": f"{location}: allowed is a JSON object",
    }
    if top in FORMS and len(parts) > 1:
        return f"{top}: {FORMS[top]}"
    return sentences.get(error["type"], f"{location}: {error['msg']}")

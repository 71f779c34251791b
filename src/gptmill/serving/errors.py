"""Errors in the format of OpenAI's API."""

from typing import Any

MOST_CHARACTERS = 500
"""Longest message: messages quote requests, and requests may be long."""


class ApiError(Exception):
    """An error sent to the client instead of a result.

    The error has an HTTP status, a sentence for people and a code for programs.
    """

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param

    @property
    def body(self) -> dict[str, Any]:
        """Return the JSON body of the response."""
        return error_body(self.status, str(self), code=self.code, param=self.param)


def error_body(
    status: int, message: str, *, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """Return an error body in the format OpenAI's clients read."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    short, short_param = _shortened(message), param and _shortened(param)
    return {"error": {"message": short, "type": kind, "param": short_param, "code": code}}


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."


def as_api_error(error: Exception) -> ApiError:
    """Return the error to send to the client.

    For an unexpected error the client learns only of an internal error, without details.
    """
    if isinstance(error, ApiError):
        return error
    return ApiError(500, "an internal error occurred in the server", code="internal_error")

"""Errors in the form in which OpenAI's API tells them."""

from typing import Any


class ApiError(Exception):
    """What is answered in place of a result: a status, a sentence, a code that programs read."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param

    @property
    def body(self) -> dict[str, Any]:
        """Return the JSON that is sent."""
        return error_body(self.status, str(self), code=self.code, param=self.param)


def error_body(
    status: int, message: str, *, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """Return an error as OpenAI's clients read it."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def as_api_error(error: Exception) -> ApiError:
    """Return what a client is told of an error; of one of ours no more than that it is ours."""
    if isinstance(error, ApiError):
        return error
    return ApiError(500, "something went wrong in the server", code="internal_error")

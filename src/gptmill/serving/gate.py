"""Checks before the application: API key and size; host_guard.py checks host and origin."""

import hmac
from dataclasses import dataclass

from gptmill.serving.host_guard import App, Message, Receive, Send, headers_of, refuse

MOST_BYTES = 4 * 2**20
"""Largest size of a request's body in bytes: far more than any context holds."""


@dataclass(frozen=True)
class Gate:
    """ASGI middleware that checks requests before the application.

    `key`, if set, is required for all paths below /v1/.
    """

    app: App
    key: str | None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Refuse the request or pass the request to the application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope, headers_of(scope))
        if refusal is not None:
            challenge = [(b"www-authenticate", b"Bearer")] if refusal[0] == 401 else []
            await refuse(send, *refusal, *challenge)
            return
        await self.app(scope, _bounded(receive), send)

    def _refusal(self, scope: Message, headers: dict[str, str]) -> tuple[int, str, str] | None:
        """Return the status, message and code of a refusal.

        Returns None for a request that passes all checks. OPTIONS needs no key: a browser asks for
        permission without the key.
        """
        needs_key = scope["path"].startswith("/v1/") and scope["method"] != "OPTIONS"
        if needs_key and not self._has_key(headers.get("authorization", "")):
            return (
                401,
                "the API key is missing or wrong: send `Authorization: Bearer KEY`",
                "invalid_api_key",
            )
        size = headers.get("content-length", "0")
        if not size.isdecimal() or int(size) > MOST_BYTES:
            return 413, f"the body is larger than {MOST_BYTES} bytes", "request_too_large"
        return None

    def _has_key(self, authorization: str) -> bool:
        if self.key is None:
            return True
        scheme, _, credentials = authorization.partition(" ")
        # compare in constant time: the duration must not reveal how much of a key is right
        matches = hmac.compare_digest(credentials.strip().encode("utf-8"), self.key.encode("utf-8"))
        return matches and scheme.lower() == "bearer"


class TooLargeError(Exception):
    """A body without a declared length exceeded the size limit."""


def _bounded(receive: Receive) -> Receive:
    """Return a `receive` that raises past MOST_BYTES.

    A body sent in chunks declares no length and may never end. Raises TooLargeError.
    """
    n_bytes = 0

    async def bounded() -> Message:
        nonlocal n_bytes
        message = await receive()
        n_bytes += len(message.get("body", b""))
        if n_bytes > MOST_BYTES:
            raise TooLargeError
        return message

    return bounded

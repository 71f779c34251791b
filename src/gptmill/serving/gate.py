"""What a request must pass before anything reads it: where it comes from, a key, its size.

A page of any site can have a visitor's browser send requests to a server on the visitor's own
machine. Reading the answers is closed to it by the absence of CORS headers, unless the site's
name is made to point at 127.0.0.1 (DNS rebinding): then the Host header has the site's name,
and is refused. Writing is closed by the Origin header that browsers send with it.
"""

import hmac
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from gptmill.serving.errors import error_body

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

MOST_BYTES = 4 * 2**20
"""Of a request's body: far more than any context holds."""
LOOPBACK_NAMES = frozenset(["localhost", "127.0.0.1", "::1"])


@dataclass(frozen=True)
class Gate:
    """An ASGI application before another one.

    `hosts` are the names under which the server is known, None for any. `key`, where there is
    one, opens all below /v1/.
    """

    app: App
    key: str | None
    hosts: frozenset[str] | None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer with an error, or hand over to the application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in _headers(scope)
        }
        refusal = self._refusal(scope["path"], headers)
        if refusal is not None:
            await _refuse(send, *refusal)
            return
        await self.app(scope, _bounded(receive), send)

    def _refusal(self, path: str, headers: dict[str, str]) -> tuple[int, str, str] | None:
        """Return the status, the sentence and the code with which a request is refused."""
        host = headers.get("host", "")
        if self.hosts is not None and _host_name(host) not in self.hosts:
            return 403, f"this server is not known as {host!r}", "host_not_allowed"
        origin = headers.get("origin")
        if self.key is None and origin is not None and urlsplit(origin).netloc != host:
            return 403, "pages of other sites may not use this server", "origin_not_allowed"
        if path.startswith("/v1/") and not self._has_key(headers.get("authorization", "")):
            return (
                401,
                "no key, or a wrong one: send `Authorization: Bearer KEY`",
                "invalid_api_key",
            )
        size = headers.get("content-length", "0")
        if not size.isdecimal() or int(size) > MOST_BYTES:
            return 413, f"the body is larger than {MOST_BYTES} bytes", "request_too_large"
        return None

    def _has_key(self, authorization: str) -> bool:
        if self.key is None:
            return True
        word, _, given = authorization.partition(" ")
        # in constant time: how long a comparison takes must not tell how much of a key is right
        right = hmac.compare_digest(given.strip().encode("utf-8"), self.key.encode("utf-8"))
        return right and word.lower() == "bearer"


class TooLargeError(Exception):
    """A body without a stated length grew past what is read."""


def _bounded(receive: Receive) -> Receive:
    """Return a `receive` that stops a body that is sent in deltas and never ends."""
    read = 0

    async def bounded() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > MOST_BYTES:
            raise TooLargeError
        return message

    return bounded


def _headers(scope: Message) -> Iterable[tuple[bytes, bytes]]:
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return headers


def _host_name(host: str) -> str:
    """Return the name in a Host header, without port and brackets, in small letters."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


async def _refuse(send: Send, status: int, message: str, code: str) -> None:
    body = json.dumps(error_body(status, message, code=code)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

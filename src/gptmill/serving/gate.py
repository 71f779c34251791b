"""Checks before the application: host, origin, API key and size.

A page of any site can make a visitor's browser send requests to a server on the visitor's own
machine. The absence of CORS headers keeps the page from reading the answers, unless the site's
name is made to point at 127.0.0.1 (DNS rebinding): the Host header then holds the site's name,
and the request is refused. A write from a foreign page is refused by the Origin header, which
browsers send with every write.
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
"""Largest size of a request's body in bytes: far more than any context holds."""
LOOPBACK_NAMES = frozenset(["localhost", "127.0.0.1", "::1"])


@dataclass(frozen=True)
class Gate:
    """ASGI middleware that checks requests before the application.

    `hosts` are the host names the server accepts; None accepts any name. `key`, if set, is
    required for all paths below /v1/.
    """

    app: App
    key: str | None
    hosts: frozenset[str] | None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Refuse the request or pass the request to the application."""
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
        """Return the status, message and code of a refusal.

        Returns None for a request that passes all checks.
        """
        host = headers.get("host", "")
        if self.hosts is not None and _host_name(host) not in self.hosts:
            return 403, f"the host {host!r} is not a name of this server", "host_not_allowed"
        origin = headers.get("origin")
        if self.key is None and origin is not None and urlsplit(origin).netloc != host:
            return 403, "pages of other sites may not use this server", "origin_not_allowed"
        if path.startswith("/v1/") and not self._has_key(headers.get("authorization", "")):
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


def _headers(scope: Message) -> Iterable[tuple[bytes, bytes]]:
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return headers


def _host_name(host: str) -> str:
    """Return the name in a Host header, in lower case.

    The port and the brackets of an IPv6 address are removed.
    """
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

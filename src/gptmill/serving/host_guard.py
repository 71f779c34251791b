"""Checks of a request's host and origin, before any server of the project sees the request.

A page of any site can make a visitor's browser send requests to a server on the visitor's own
machine. The absence of CORS headers keeps the page from reading the answers, unless the site's
name is made to point at 127.0.0.1 (DNS rebinding): the Host header then holds the site's name,
and the request is refused. A write, or a WebSocket, from a foreign page is refused by the Origin
header, which browsers send with both.
"""

import json
import os
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

from gptmill.serving.errors import error_body

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LOOPBACK_NAMES = frozenset(["localhost", "127.0.0.1", "::1"])
ALLOWED = "GPTMILL_ALLOWED_HOSTS"
"""Environment variable: further host names of our servers, separated by commas."""


def allowed_names() -> frozenset[str]:
    """Return the host names in GPTMILL_ALLOWED_HOSTS.

    Raises ValueError for a name with a scheme, port, path or wildcard.
    """
    names = [name.strip().lower() for name in os.environ.get(ALLOWED, "").split(",")]
    for name in filter(None, names):
        if host_name(name) != name.strip("[]"):
            raise ValueError(
                f"{ALLOWED} has {name!r}; allowed are host names without scheme and port, "
                "separated by commas, such as `mill.example.org`"
            )
    return frozenset(name.strip("[]") for name in names if name)


def host_name(host: str) -> str:
    """Return the name in a Host header in lower case, without port and brackets."""
    return _split(f"//{host}").hostname or ""


@dataclass(frozen=True)
class HostGuard:
    """ASGI middleware that refuses foreign hosts and foreign pages, over HTTP and WebSockets."""

    app: App
    hosts: frozenset[str] | None
    """The host names the server accepts; None accepts any name."""
    check_origin: bool = True
    origins: frozenset[str] = frozenset()
    """Sites whose pages are not foreign, as browsers send them in the Origin header."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Refuse the request or pass the request to the application."""
        refusal = None if scope["type"] == "lifespan" else self._refusal(headers_of(scope))
        if refusal is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()  # the opening handshake, answered with 403
            await send({"type": "websocket.close", "code": 1008, "reason": refusal[0]})
        else:
            await refuse(send, 403, *refusal)

    def _refusal(self, headers: dict[str, str]) -> tuple[str, str] | None:
        """Return the message and code of a refusal, or None."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.hosts is not None and host_name(host) not in self.hosts:
            return (
                f"the host {host!r} is not a name of this server; {ALLOWED} may name more",
                "host_not_allowed",
            )
        if self.check_origin and origin is not None and not self._is_own(origin, host):
            return "pages of other sites may not use this server", "origin_not_allowed"
        return None

    def _is_own(self, origin: str, host: str) -> bool:
        """Return whether a page of `origin` may use the server at `host`.

        The port of this machine must be equal: pages on other ports belong to other programs. A
        name in the environment may have any port, because a proxy can change the port.
        """
        if origin in self.origins:
            return True
        page, server = _split(origin), _split(f"//{host}")
        if page.netloc.lower() == host.lower():
            return True
        name = page.hostname or ""
        if name in LOOPBACK_NAMES:
            return _port(page) == _port(server)
        return self.hosts is not None and name in self.hosts


def headers_of(scope: Message) -> dict[str, str]:
    """Return a request's headers by lower-case name."""
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}


async def refuse(
    send: Send, status: int, message: str, code: str, *headers: tuple[bytes, bytes]
) -> None:
    """Send an error in the form of OpenAI's API, and close the connection."""
    body = json.dumps(error_body(status, message, code=code)).encode()
    start = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


def _port(url: SplitResult) -> int | None:
    try:
        return url.port
    except ValueError:
        return None

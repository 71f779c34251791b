"""Addresses of private sources: credentials are sent, but never shown or recorded."""

import base64
import http.client
import os
import re
import socket
import ssl
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, unquote, urlsplit

ADDRESS = re.compile(r"([a-zA-Z][\w+.-]*://)([^\s'\"<>]*)")
SHOWN = re.compile(r"(?:[^/?#@]*@)?([^/?#@]*(?:/[^?#@]*)?)(?:[?#][^@]*)?")
RANGE_NOT_SATISFIABLE = 416
TIMEOUT = 30  # seconds without a byte
BUSY = (408, 425, 429, 500, 502, 503, 504)
"""The statuses of servers that may answer later."""


class PassingError(ConnectionError):
    """A failure that may pass by itself: a server that is away, busy or too slow."""


class NothingLeftError(ConnectionError):
    """The server's file ends before the byte that was asked for."""


def hidden(text: str) -> str:
    """Return text whose addresses have no user, password, query or fragment."""
    return ADDRESS.sub(lambda address: address[1] + _without_secrets(address[2]), text)


def _without_secrets(rest: str) -> str:
    shown = SHOWN.fullmatch(rest)
    return shown[1] if shown else "(hidden)"  # an @ elsewhere may be part of a password


def opened(at: Mapping[str, str], *, start: int) -> Any:
    """Open the address of an http place from a byte on; return the response.

    The header, and the user and password of the address, go to the server of the address and to no
    other server that the address leads to. Raises ValueError for an unset variable of the header,
    NothingLeftError for a file that ends before `start`, PassingError for a failure that may pass
    by itself, and OSError for another failure of network or server; no message holds a secret.
    """
    url = urlsplit(at["url"])
    host = url.netloc.rpartition("@")[2]
    request = urllib.request.Request(url._replace(netloc=host).geturl())
    request.add_header("Range", f"bytes={start}-")
    for name, value in _credentials(url, at.get("header", "")).items():
        request.add_unredirected_header(name, value)
    try:
        return urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT)
    except URLError as error:
        if start and isinstance(error, HTTPError) and error.code == RANGE_NOT_SATISFIABLE:
            raise NothingLeftError(hidden(str(error))) from None
        if isinstance(error, HTTPError):
            error.close()
        kind = PassingError if _may_pass(error) else ConnectionError
        raise kind(hidden(str(error))) from None
    except http.client.InvalidURL:
        raise ConnectionError("the server leads to an invalid address") from None


@contextmanager
def passing() -> Iterator[None]:
    """Raise PassingError for connections that break, or stand still, in the block."""
    try:
        yield
    except (TimeoutError, ConnectionResetError, http.client.IncompleteRead) as error:
        raise PassingError(hidden(str(error)) or "the server did not answer in time") from None


def _may_pass(error: URLError) -> bool:
    """Return whether a failure may pass by itself; a wrong name or certificate does not."""
    if isinstance(error, HTTPError):
        return error.code in BUSY
    if isinstance(error.reason, socket.gaierror):
        return error.reason.errno == socket.EAI_AGAIN
    return isinstance(error.reason, OSError) and not isinstance(error.reason, ssl.SSLError)


def _credentials(url: SplitResult, header: str) -> dict[str, str]:
    if header:
        name, _, value = header.partition(": ")
        scheme, _, variable = value.rpartition("$")
        return {name: scheme + _variable(variable)}
    if "@" not in url.netloc:
        return {}
    pair = f"{unquote(url.username or '')}:{unquote(url.password or '')}"
    return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _variable(name: str) -> str:
    value = os.environ.get(name, "").strip()
    if not value:
        raise ValueError(f"the header needs the environment variable {name}; set the variable")
    if not (value.isascii() and value.isprintable()):
        raise ValueError(f"the environment variable {name} may hold printable ASCII alone")
    return value


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Sends credentials on only where the server stays the same."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and _server(newurl) == _server(req.full_url):
            for name, value in req.unredirected_hdrs.items():
                request.add_unredirected_header(name, value)
        return request


def _server(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc

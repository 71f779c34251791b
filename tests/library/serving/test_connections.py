"""Limits of connections, at a real server with short times."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
import uvicorn

from gptmill.serving import connections
from gptmill.serving.connections import Connection

MOST = 4
HEAD = b"Host: a\r\nContent-Length: 9\r\n\r\n"
WHOLE = b"POST / HTTP/1.1\r\n" + HEAD + b"123456789"
Connect = Callable[[bytes], socket.socket]


class App:
    """Reads a body, then answers by the path; notes how many clients left."""

    def __init__(self) -> None:
        self.left = threading.Semaphore(0)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive())["type"] == "http.request" and message["more_body"]:
            pass
        if message["type"] == "http.disconnect":
            self.left.release()
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        parts = {"/long": 10, "/flood": 10**6}.get(scope["path"], 0)
        size, pause = (2**16, 0.0) if scope["path"] == "/flood" else (1, 0.1)
        leaving = asyncio.ensure_future(receive())
        for _ in range(parts):
            await send({"type": "http.response.body", "body": b"x" * size, "more_body": True})
            await asyncio.sleep(pause)
            if leaving.done():
                self.left.release()
                return
        leaving.cancel()
        await send({"type": "http.response.body", "body": b"end"})


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def connect(app: App, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """A server in a thread; returns connections that have sent some bytes."""
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.4)
    monkeypatch.setattr(connections, "STALL_SECONDS", 0.4)
    config = uvicorn.Config(
        app, http=Connection, limit_concurrency=MOST, log_level="error", lifespan="off", ws="none"
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as bound, ExitStack() as stack:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()

        def connected(sent: bytes) -> socket.socket:
            client = stack.enter_context(socket.create_connection(bound.getsockname(), timeout=20))
            client.sendall(sent)
            return client

        yield connected
        server.should_exit = True
        thread.join(20)


def read_all(client: socket.socket) -> bytes:
    parts = []
    while part := client.recv(2**16):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"", b""),
        (b"GET / HT", b"HTTP/1.1 408 Request Timeout"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX", b"HTTP/1.1 408 Request Timeout"),
        (b"POST / HTTP/1.1\r\n" + HEAD + b"1234", b"HTTP/1.1 408 Request Timeout"),
        (b"HEAD / HTTP/1.1\r\n" + HEAD + b"1234", b"HTTP/1.1 408 Request Timeout"),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nx",
            b"HTTP/1.1 408",
        ),
        (WHOLE + b"POST", b"HTTP/1.1 200 OK"),
    ],
)
def test_half_a_request_ends(connect: Connect, app: App, sent: bytes, expected: bytes) -> None:
    found = read_all(connect(sent))
    assert found.startswith(expected)
    assert (b"did not arrive within 0.4 seconds" in found) == (
        b"408" in found and not sent.startswith(b"HEAD")
    )


def test_a_request_in_drops_ends_too(connect: Connect) -> None:
    client = connect(b"GET / HTTP/1.1\r\nX: ")
    client.settimeout(0.05)
    found = b""
    for _ in range(200):
        with suppress(TimeoutError):
            found = client.recv(2**16)
            break
        client.sendall(b"x")
    assert b" 408 " in found


def test_an_answer_longer_than_a_request_may_take_is_whole(connect: Connect) -> None:
    found = read_all(connect(WHOLE.replace(b"/", b"/long", 1)))
    assert found.count(b"\r\nx\r\n") == 10
    assert b"end" in found


def test_a_client_that_does_not_read_is_left(connect: Connect, app: App) -> None:
    connect(WHOLE.replace(b"/", b"/flood", 1))
    assert app.left.acquire(timeout=20)


def test_a_new_connection_takes_the_room_of_the_slowest(connect: Connect) -> None:
    for _ in range(MOST):
        connect(b"GET / HTTP")
    assert b"200 OK" in connect(WHOLE).recv(2**16)


def test_answers_in_progress_keep_their_room(connect: Connect) -> None:
    long = [connect(WHOLE.replace(b"/", b"/long", 1)) for _ in range(MOST)]
    assert all(b"200 OK" in client.recv(2**16) for client in long)
    assert b" 503 Service Unavailable" in read_all(connect(WHOLE))
    assert all(b"end" in read_all(client) for client in long)

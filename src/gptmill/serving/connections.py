"""Connections with limits, so that no client holds the server by sending or reading slowly.

A request must arrive within REQUEST_SECONDS, and a client must take what is sent within
STALL_SECONDS. A new connection above the limit replaces the connection that has been without a
whole request for longest; connections with an answer in progress stay.
"""

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from gptmill.serving.errors import error_body
from gptmill.serving.host_guard import Message, Receive, Send, refuse

REQUEST_SECONDS = 30.0
"""From the first byte of a request, or the start of a connection, to the request's end."""
STALL_SECONDS = 60.0
"""For a client that leaves 64 KB unread."""
GOODBYE_SECONDS = 3.0
"""For the last bytes of a connection that is being closed."""


FULL = "the server has too many connections; try again later"


class Connection(H11Protocol):
    """A connection of uvicorn's with limits on time and number, and errors in the API's form."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # uvicorn would answer above its limit, yet keep every connection
        self._most, self.limit_concurrency = self.limit_concurrency, None
        self._arrival: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time for a request, and make room above the limit of connections."""
        super().connection_made(transport)
        self._watch_arrival()
        if self._most is not None and len(self.connections) > self._most:
            self._make_room()

    def _make_room(self) -> None:
        """Close the connection without a request for longest; without any, refuse requests here."""
        others = [
            one for one in self.connections if isinstance(one, Connection) and one is not self
        ]
        deadlines = {one: one._arrival.when() for one in others if one._arrival is not None}
        if deadlines:
            oldest = min(deadlines, key=lambda connection: deadlines[connection])
            oldest.refuse(503, FULL, "overloaded")
        else:
            self.app = _refuse_as_full

    def data_received(self, data: bytes) -> None:
        """Pass the data on; the request's end stops its time."""
        super().data_received(data)
        self._watch_arrival()

    def on_response_complete(self) -> None:
        """Start the time for the next request."""
        super().on_response_complete()
        self._watch_arrival()

    def pause_writing(self) -> None:
        """Start the time for a client that does not read."""
        super().pause_writing()
        self._stall = self.loop.call_later(STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the time for a client that does not read."""
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all times."""
        super().connection_lost(exc)
        for timer in (self._arrival, self._stall):
            if timer is not None:
                timer.cancel()

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are not HTTP."""
        self.refuse(400, "the request is not valid HTTP/1.1", "invalid_http")

    def shutdown(self) -> None:
        """End the connection: at once without a whole request, else after the answer."""
        if self._arrival is not None:
            self.refuse(503, "the server is being stopped", "stopping")
        else:
            super().shutdown()
            # a client that does not read would hold the answer, and the answer the server
            self.loop.call_later(GOODBYE_SECONDS, self.transport.abort)

    def refuse(self, status: int, message: str, code: str) -> None:
        """Close the connection, with an error for a client that has begun a request."""
        has_begun = self.conn.their_state is not h11.IDLE or self.conn.trailing_data[0]
        if has_begun and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error_body(status, message, code=code)).encode()
            self.transport.write(self._response(status, body))
        if self.cycle is not None:
            self.cycle.disconnected = True  # the application reads of a client that has left
            self.cycle.message_event.set()
        self.transport.close()
        self.loop.call_later(GOODBYE_SECONDS, self.transport.abort)

    def _response(self, status: int, body: bytes) -> bytes:
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        is_head = self.conn.our_state is h11.SEND_RESPONSE and self.scope["method"] == "HEAD"
        response = h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status])
        events = [response, *([] if is_head else [h11.Data(data=body)]), h11.EndOfMessage()]
        return b"".join(self.conn.send(event) or b"" for event in events)

    def _watch_arrival(self) -> None:
        """Start or stop the time for a request, by what the client still has to send."""
        is_waiting = self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        if is_waiting and self._arrival is None and not self.transport.is_closing():
            self._arrival = self.loop.call_later(REQUEST_SECONDS, self._expire)
        elif not is_waiting and self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None

    def _expire(self) -> None:
        message = f"the request did not arrive within {REQUEST_SECONDS:g} seconds"
        self.refuse(408, message, "request_timeout")


async def _refuse_as_full(scope: Message, receive: Receive, send: Send) -> None:
    await refuse(send, 503, FULL, "overloaded", (b"retry-after", b"1"))

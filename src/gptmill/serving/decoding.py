"""The bridge between the event loop and the decoder's thread.

The event loop awaits a job's deltas and the job's end. When a client disconnects, the client's
job is removed from the worker, whether the job is waiting, active or about to start.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from gptmill.generation.completion import Completion, Delta
from gptmill.serving.errors import as_api_error
from gptmill.serving.wire import Answer, event
from gptmill.serving.worker import Event, Job, Worker

CLIENT_LEFT = 499  # proxies log 499 for a disconnected client; no client is left to read it


class Decoding:
    """A job in the worker, seen from the event loop.

    The constructor submits the job and raises the errors of `Worker.submit`.
    """

    def __init__(self, worker: Worker, completions: Sequence[Completion]) -> None:
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def enqueue(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        self._events = events
        self._worker = worker
        self._job = Job(completions, enqueue)
        worker.submit(self._job)

    async def steps(self) -> AsyncGenerator[list[Delta], None]:
        """Yield each step's deltas on arrival; raise the worker's errors."""
        while (event := await self._events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event

    def release(self) -> None:
        """Remove the job from the worker unless already ended."""
        self._worker.cancel(self._job)


async def whole(request: Request, answer: Answer, decoding: Decoding) -> Response:
    """Return the complete answer.

    Returns an empty response if the client disconnects before the answer is complete.
    """
    collecting = asyncio.create_task(_collect(answer, decoding))
    disconnecting = asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait({collecting, disconnecting}, return_when=asyncio.FIRST_COMPLETED)
        if not collecting.done():
            return Response(status_code=CLIENT_LEFT)
        collecting.result()
        return JSONResponse(answer.whole())
    finally:
        collecting.cancel()
        disconnecting.cancel()
        decoding.release()


class Stream(StreamingResponse):
    """The answer as a stream of server-sent events."""

    def __init__(self, answer: Answer, decoding: Decoding) -> None:
        # ask proxies to forward each event immediately, neither cached nor buffered
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(_events(answer, decoding), media_type="text/event-stream", headers=headers)
        self._decoding = decoding

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events, then release the job.

        The job is also released if the client disconnects before the first event.
        """
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._decoding.release()


async def _events(answer: Answer, decoding: Decoding) -> AsyncGenerator[bytes, None]:
    for chunk in answer.opening():
        yield chunk
    try:
        async for deltas in decoding.steps():
            answer.take(deltas)
            for chunk in answer.events(deltas):
                yield chunk
                # queued events are sent without a pause: the loop must see that the client left
                await asyncio.sleep(0)
    except Exception as error:  # the status is already sent: report the error as an event
        yield event(as_api_error(error).body)
        return
    for chunk in answer.closing():
        yield chunk


async def _collect(answer: Answer, decoding: Decoding) -> None:
    async for deltas in decoding.steps():
        answer.take(deltas)


async def _wait_for_disconnect(request: Request) -> None:
    """Wait until the client disconnects.

    After the request's body, a disconnect is the only message left to receive.
    """
    while (await request.receive())["type"] != "http.disconnect":
        pass

"""Between the event loop and the decoder's thread: a job's deltas, awaited, and its end.

A client that leaves takes its job out of the worker, whether it waits, is being answered, or
was about to be.
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

CLIENT_LEFT = 499  # the status that proxies note for it; nobody is there to read it


class Decoding:
    """A job in the worker, seen from the event loop. Raises what `Worker.submit` raises."""

    def __init__(self, worker: Worker, completions: Sequence[Completion]) -> None:
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def tell(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        self._events = events
        self._worker = worker
        self._job = Job(completions, tell)
        worker.submit(self._job)

    async def steps(self) -> AsyncGenerator[list[Delta], None]:
        """Yield each step's deltas as they come; raise what went wrong in the worker."""
        while (event := await self._events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event

    def release(self) -> None:
        """Take the job out of the worker, if it is still there."""
        self._worker.cancel(self._job)


async def whole(request: Request, answer: Answer, decoding: Decoding) -> Response:
    """Return the answer when it is complete, unless the client leaves before."""
    taking = asyncio.create_task(_take_all(answer, decoding))
    leaving = asyncio.create_task(_left(request))
    try:
        await asyncio.wait({taking, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not taking.done():
            return Response(status_code=CLIENT_LEFT)
        taking.result()
        return JSONResponse(answer.whole())
    finally:
        taking.cancel()
        leaving.cancel()
        decoding.release()


class Stream(StreamingResponse):
    """The answer as server-sent events, as they come."""

    def __init__(self, answer: Answer, decoding: Decoding) -> None:
        # proxies are asked to pass each event on at once
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(_events(answer, decoding), media_type="text/event-stream", headers=headers)
        self._decoding = decoding

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; also where the client left before the first, nothing is left behind."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._decoding.release()


async def _events(answer: Answer, decoding: Decoding) -> AsyncGenerator[bytes, None]:
    for sent in answer.opening():
        yield sent
    try:
        async for deltas in decoding.steps():
            answer.take(deltas)
            for sent in answer.events(deltas):
                yield sent
    except Exception as error:  # the status is sent already: what went wrong is an event
        yield event(as_api_error(error).body)
        return
    for sent in answer.closing():
        yield sent


async def _take_all(answer: Answer, decoding: Decoding) -> None:
    async for deltas in decoding.steps():
        answer.take(deltas)


async def _left(request: Request) -> None:
    """Wait until the client is gone: after the body nothing else can come from it."""
    while (await request.receive())["type"] != "http.disconnect":
        pass

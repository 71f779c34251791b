"""The bridge between the event loop and the decoder."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from gptmill.serving.decoding import _events


def test_the_loop_runs_between_events_that_wait_in_line() -> None:
    """A client that left is noticed by a callback of the loop, before the next event is sent."""

    async def steps() -> AsyncIterator[list[int]]:
        for step in range(3):
            yield [step]

    answer: Any = SimpleNamespace(
        opening=list, take=lambda deltas: None, events=lambda deltas: [b"x", b"y"], closing=list
    )
    decoding: Any = SimpleNamespace(steps=steps)

    async def noticed() -> list[bool]:
        callbacks: list[int] = []
        found = []
        async for _ in _events(answer, decoding):
            found.append(len(callbacks) == len(found))
            asyncio.get_running_loop().call_soon(callbacks.append, len(found))
        return found

    assert asyncio.run(noticed()) == [True] * 6

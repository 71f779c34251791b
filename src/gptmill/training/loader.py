"""Batches made ahead of their step, each with a digest of what is in it."""

import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from gptmill.model.objectives import Batch, Objective
from gptmill.training.distributed import World


@dataclass(frozen=True)
class LoadedBatch:
    """A batch, this rank's rows of it, and what is to be known of the whole."""

    index: int
    batch: Batch
    rows: int
    """Of the largest share that a rank has; a share may have one row less."""
    count: int
    tokens: int
    digest: str


class Loader:
    """Makes the next batch in a thread while the device works on this one."""

    def __init__(
        self, batches: Callable[[int], Batch], objective: Objective, world: World, *, pin: bool
    ) -> None:
        self._batches, self._objective, self._world, self._pin = batches, objective, world, pin
        self._thread = ThreadPoolExecutor(1, "batches")
        self._next: tuple[int, Future[LoadedBatch]] | None = None

    def get(self, index: int) -> LoadedBatch:
        """Return a batch, and begin with the one behind it."""
        if self._next is None or self._next[0] != index:
            self._next = (index, self._thread.submit(self._make, index))
        future = self._next[1]
        self._next = (index + 1, self._thread.submit(self._make, index + 1))
        return future.result()

    def run_in_worker(self, question: Callable[[], Any]) -> Any:
        """Answer a question about the data in the thread that reads them."""
        return self._thread.submit(question).result()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)

    def _make(self, index: int) -> LoadedBatch:
        whole = self._batches(index)
        rows = self._world.share(whole)
        return LoadedBatch(
            index=index,
            batch=tuple(tensor.pin_memory() for tensor in rows) if self._pin else rows,
            rows=self._world.largest_share(len(whole[0])),
            count=self._objective.count(whole),
            tokens=whole[0].numel(),
            digest=digest(whole),
        )


def digest(batch: Batch) -> str:
    """Return what names a batch's content: equal tensors have equal digests."""
    found = hashlib.sha256()
    for tensor in batch:
        found.update(str(tuple(tensor.shape)).encode())
        found.update(np.ascontiguousarray(tensor.numpy()).tobytes())
    return found.hexdigest()[:16]

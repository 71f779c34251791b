"""Batches loaded ahead of the training step, with content digests."""

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
    """One rank's rows of a batch, with facts about the whole batch."""

    index: int
    batch: Batch
    rows: int
    """Rows in the largest share of any rank; a share may have a row less."""
    count: int
    tokens: int
    digest: str


class Loader:
    """Background thread loading the next batch during the current step."""

    def __init__(
        self, batches: Callable[[int], Batch], objective: Objective, world: World, *, pin: bool
    ) -> None:
        self._batches, self._objective, self._world, self._pin = batches, objective, world, pin
        self._thread = ThreadPoolExecutor(1, "batches")
        self._next: tuple[int, Future[LoadedBatch]] | None = None

    def get(self, index: int) -> LoadedBatch:
        """Return a batch and start loading the next batch."""
        if self._next is None or self._next[0] != index:
            self._next = (index, self._thread.submit(self._make, index))
        future = self._next[1]
        self._next = (index + 1, self._thread.submit(self._make, index + 1))
        return future.result()

    def run_in_worker(self, function: Callable[[], Any]) -> Any:
        """Run a function in the data-reading thread; return the result."""
        return self._thread.submit(function).result()

    def close(self) -> None:
        """Stop the thread."""
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
    """Return a digest of a batch: equal tensors have equal digests."""
    hasher = hashlib.sha256()
    for tensor in batch:
        hasher.update(str(tuple(tensor.shape)).encode())
        hasher.update(np.ascontiguousarray(tensor.numpy()).tobytes())
    return hasher.hexdigest()[:16]

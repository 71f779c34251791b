"""The state of a training on disk: what a killed run goes on from, bit for bit.

A state is one safetensors file: weights, optimizer, the history of steps so far, and a record
of plain values in its header. Its SHA-256 lies beside it and is written after it, so that a
file without one was never finished, and one that differs from it was damaged since. The last
few are kept: where the newest is damaged, the one before is used.

Of a sharded training (shards.py) most tensors lie in files beside that one, which it names.
"""

import errno
import json
import os
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gptmill.files import sha256, write_text

LARGEST_SHARE = 0.05
"""Saving may take this share of the time; states are saved less often where it would be more."""

SHARDS = "shards"
"""Names, in a state's record, the folder of its other files and their SHA-256."""

StepRows = list[dict[str, Any]]


@dataclass(frozen=True)
class State:
    """A training after `step` updates: its tensors on the CPU, plain values, a row a step."""

    step: int
    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any]
    rows: StepRows
    shards: Path | None = None
    """Where its other tensors are, of a state that was found."""


@dataclass(frozen=True)
class SavedProgress:
    """How far a training is that left states."""

    step: int
    seconds: float


class StateStore:
    """States of one training in a folder of their own."""

    def __init__(self, folder: Path, *, every: float, keep: int) -> None:
        assert keep >= 1
        self.folder = folder
        self.every = every
        self.keep = keep
        self.notes: list[str] = []
        """What a person should know of the states that were found."""
        self._saved = time.monotonic()
        self._cost = 0.0
        self._encoded: tuple[StepRows, bytearray] = ([], bytearray())
        self._writer = ThreadPoolExecutor(1, "state")
        self._writing: Future[None] | None = None

    @property
    def leads(self) -> bool:
        """Return whether this process writes the state's own file."""
        return True

    def due(self) -> bool:
        """Return whether the next state should be saved: `every` seconds have passed, or more.

        With 0 it is due whenever the last one is written.

        Raises what the last saving raised, if it failed meanwhile.
        """
        if self._writing is not None and self._writing.done():
            self._finish()
        wait = max(self.every, self._cost / LARGEST_SHARE) if self.every else 0
        return self._writing is None and time.monotonic() - self._saved >= wait

    def save(self, state: State, *, wait: bool = False) -> None:
        """Write a state in the background, or now; `state.tensors` must not change any more.

        Raises OSError where it cannot be written; the states before it are then as they were.
        """
        self._finish()
        self._saved = time.monotonic()
        history = self._encode(state.rows)
        self._writing = self._writer.submit(self._write, state, history)
        if wait:
            self._finish()

    def load(self) -> State | None:
        """Return the newest state that is whole, or None; say in `notes` what was not."""
        self._finish()
        for partial in self.folder.glob(".*.safetensors.partial"):
            partial.unlink()
        self._drop_shards()
        for path in self._paths():
            fault = _fault(path)
            if fault is None:
                return _read(path)
            step = int(path.stem.removeprefix("step-"))
            self.notes.append(f"the state of step {step:,} {fault}: it is not used")
            path.unlink(missing_ok=True)
            _seal(path).unlink(missing_ok=True)
        return None

    def close(self) -> None:
        """Wait for what is being written; what then fails, fails in silence: a run is ending."""
        with suppress(OSError):
            self._finish()
        self._writer.shutdown()

    def _paths(self) -> list[Path]:
        return _states(self.folder)

    def _finish(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _encode(self, rows: StepRows) -> Tensor:
        """Return the history as bytes; rows that were encoded before are not encoded again."""
        before, text = self._encoded
        count = len(before)
        # a rollback may have put other rows in the place of some
        if count > len(rows) or (count and rows[count - 1] is not before[-1]):
            count, text = 0, bytearray()
        for row in rows[count:]:
            text += json.dumps(row).encode() + b"\n"
        self._encoded = (rows, text)
        return torch.frombuffer(bytearray(text or b"\n"), dtype=torch.uint8)

    def _write(self, state: State, history: Tensor) -> None:
        started = time.monotonic()
        path = self.folder / f"step-{state.step:09d}.safetensors"
        self.folder.mkdir(parents=True, exist_ok=True)
        state = self._set_aside(state, path)
        if self.leads:
            self._write_file(state, path, history)
        self._cost = time.monotonic() - started

    def _set_aside(self, state: State, path: Path) -> State:
        """Write elsewhere what is not for the state's own file; return the rest."""
        return state

    def _write_file(self, state: State, path: Path, history: Tensor) -> None:
        tensors = {**state.tensors, "history": history}
        needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise OSError(errno.ENOSPC, no_room(path, f"{needed:,} bytes needed, {free:,} free"))
        _save_file(tensors, path, {"record": json.dumps(dict(state.record))})
        for old in self._paths()[self.keep :]:
            _seal(old).unlink()
            old.unlink()
        self._drop_shards()

    def _drop_shards(self) -> None:
        """Remove what no state names: those of states that are gone, or were never finished."""
        there = [*self.folder.glob(f"*.{SHARDS}"), *self.folder.glob(f".*.{SHARDS}.partial")]
        named = {_shards(path) for path in self._paths()} if there else set()
        for folder in there:
            if folder not in named:
                shutil.rmtree(folder, ignore_errors=True)


def progress(folder: Path) -> SavedProgress | None:
    """Return how far the newest state in a folder is, at a glance and unchecked."""
    for path in _states(folder):
        with suppress(SafetensorError, KeyError, ValueError):
            record = _record(path)
            return SavedProgress(record["progress"]["step"], record["progress"]["seconds"])
    return None


def _states(folder: Path) -> list[Path]:
    """Return the files of finished states, the newest first."""
    found = folder.glob("step-*.safetensors")
    return sorted((path for path in found if _seal(path).exists()), reverse=True)


def _record(path: Path) -> Any:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["record"])


def _save_file(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a state and its seal; whatever stops this, a whole file under the name stays whole."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file(tensors, partial, metadata=metadata)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        seal, digest = _seal(path), sha256(partial) + "\n"
        if seal.exists():  # of the same step, and whole until this one is in its place
            write_text(seal, seal.read_text(encoding="ascii", errors="replace") + digest)
        partial.replace(path)
        write_text(seal, digest)
    except SafetensorError as error:  # it wraps what the system said in words of its own
        raise OSError(errno.EIO, no_room(path, str(error))) from None
    finally:
        partial.unlink(missing_ok=True)


def no_room(path: Path, why: str) -> str:
    """Say that a state could not be saved, and why."""
    return (
        f"the training's state could not be saved as {path} ({why}); the states before it are "
        "kept: make room and run the same command again"
    )


def _seal(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _fault(path: Path) -> str | None:
    """Say what is wrong with a state's files, None if nothing is."""
    recorded = _seal(path).read_text(encoding="ascii", errors="replace").split()
    if sha256(path) not in recorded:
        return f"is damaged ({path}: its SHA-256 is not the one noted)"
    named = _record(path).get(SHARDS, {"folder": "", "files": {}})
    for name, value in named["files"].items():
        share = path.parent / named["folder"] / name
        if not share.is_file():
            return f"is damaged ({share} is missing)"
        if sha256(share) != value:
            return f"is damaged ({share}: its SHA-256 is not the one noted)"
    return None


def _shards(path: Path) -> Path | None:
    """Return the folder of a state's other files. A header that cannot be read names none."""
    with suppress(SafetensorError, KeyError, ValueError):
        return path.with_name(_record(path)[SHARDS]["folder"])
    return None


def _read(path: Path) -> State:
    with safe_open(path, framework="pt") as file:
        names = file.keys()  # it is no mapping, and has no other way to tell them
        tensors = {name: file.get_tensor(name) for name in names}
    lines = bytes(tensors.pop("history").numpy()).decode().split("\n")
    rows = [json.loads(line) for line in lines if line]
    step = int(path.stem.removeprefix("step-"))
    return State(step, tensors, _record(path), rows, _shards(path))

"""Training states on disk, for bit-exact resumption of killed runs.

A state is one safetensors file: weights, optimizer, the history of steps up to now, and a record
of plain values in the header. The SHA-256 of the file is written afterwards, to a seal file in the
same folder: a state without a seal was never finished, and a state with a different hash was
damaged later. The last few states are kept: if the newest state is damaged, the previous state is
used.

In sharded training (shards.py), most tensors are in separate files, named by the state file and
stored beside the state file.
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
"""Maximum share of the time spent on saving; slower saving means fewer states."""

SHARDS = "shards"
"""Key of a state's record for the folder, names and SHA-256 of the shard files."""

StepRows = list[dict[str, Any]]


@dataclass(frozen=True)
class State:
    """A training after `step` updates, with tensors on the CPU.

    `record` holds plain values, `rows` the history, with a row per step.
    """

    step: int
    tensors: Mapping[str, Tensor]
    record: Mapping[str, Any]
    rows: StepRows
    shards: Path | None = None
    """Folder of the remaining tensors of a loaded state, None if all are in `tensors`."""


@dataclass(frozen=True)
class SavedProgress:
    """Progress of a training with saved states."""

    step: int
    seconds: float


class StateStore:
    """States of one training in a dedicated folder."""

    def __init__(self, folder: Path, *, every: float, keep: int) -> None:
        assert keep >= 1
        self.folder = folder
        self.every = every
        self.keep = keep
        self.notes: list[str] = []
        """Messages for the user about damaged states."""
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
        """Return whether the next state should be saved now.

        A state is due after `every` seconds, or later if saving is slow. With `every` 0, a state is
        due as soon as the last state is written.

        Raises the exception of the last save, if the save failed in the background.
        """
        if self._writing is not None and self._writing.done():
            self._finish()
        wait = max(self.every, self._cost / LARGEST_SHARE) if self.every else 0
        return self._writing is None and time.monotonic() - self._saved >= wait

    def save(self, state: State, *, wait: bool = False) -> None:
        """Write a state in the background, or now with `wait`.

        `state.tensors` must not change any more. Raises OSError if the state cannot be written;
        earlier states then stay unchanged.
        """
        self._finish()
        self._saved = time.monotonic()
        history = self._encode(state.rows)
        self._writing = self._writer.submit(self._write, state, history)
        if wait:
            self._finish()

    def load(self) -> State | None:
        """Return the newest undamaged state, or None.

        Damaged states are deleted and reported in `notes`.
        """
        self._finish()
        for partial in self.folder.glob(".*.safetensors.partial"):
            partial.unlink()
        self._drop_shards()
        for path in self._paths():
            fault = _fault(path)
            if fault is None:
                return _read(path)
            step = int(path.stem.removeprefix("step-"))
            self.notes.append(f"the state of step {step:,} {fault} and is not used")
            path.unlink(missing_ok=True)
            _seal(path).unlink(missing_ok=True)
        return None

    def close(self) -> None:
        """Wait for the save in progress and stop the writer.

        An OSError of the save is ignored: the run is ending.
        """
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
        """Return the history as bytes, encoding only the new rows."""
        before, text = self._encoded
        count = len(before)
        # a rollback may have replaced rows
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
        """Write tensors stored outside the state file; return the rest."""
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
        """Delete shard folders of deleted or unfinished states.

        No state file names the deleted folders.
        """
        folders = [*self.folder.glob(f"*.{SHARDS}"), *self.folder.glob(f".*.{SHARDS}.partial")]
        in_use = {_shards(path) for path in self._paths()} if folders else set()
        for folder in folders:
            if folder not in in_use:
                shutil.rmtree(folder, ignore_errors=True)


def progress(folder: Path) -> SavedProgress | None:
    """Return the progress of a folder's newest state, unverified."""
    for path in _states(folder):
        with suppress(SafetensorError, KeyError, ValueError):
            record = _record(path)
            return SavedProgress(record["progress"]["step"], record["progress"]["seconds"])
    return None


def _states(folder: Path) -> list[Path]:
    """Return the files of finished states, newest first."""
    paths = folder.glob("step-*.safetensors")
    return sorted((path for path in paths if _seal(path).exists()), reverse=True)


def _record(path: Path) -> Any:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["record"])


def _save_file(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a state file and the seal file.

    An interruption at any point leaves an existing state under the same name undamaged.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file(tensors, partial, metadata=metadata)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        seal, digest = _seal(path), sha256(partial) + "\n"
        if seal.exists():  # of the same step: the earlier file is valid until replaced
            write_text(seal, seal.read_text(encoding="ascii", errors="replace") + digest)
        partial.replace(path)
        write_text(seal, digest)
    except SafetensorError as error:  # safetensors wraps the operating system's error
        raise OSError(errno.EIO, no_room(path, str(error))) from None
    finally:
        partial.unlink(missing_ok=True)


def no_room(path: Path, reason: str) -> str:
    """Return the error message for an unsaved state."""
    return (
        f"the training's state could not be saved as {path} ({reason}); earlier states are kept: "
        "make room and run the same command again"
    )


def _seal(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _fault(path: Path) -> str | None:
    """Return the fault of a state's files, or None."""
    recorded = _seal(path).read_text(encoding="ascii", errors="replace").split()
    if sha256(path) not in recorded:
        return f"is damaged ({path}: the SHA-256 differs from the recorded value)"
    shards = _record(path).get(SHARDS, {"folder": "", "files": {}})
    for name, value in shards["files"].items():
        shard = path.parent / shards["folder"] / name
        if not shard.is_file():
            return f"is damaged ({shard} is missing)"
        if sha256(shard) != value:
            return f"is damaged ({shard}: the SHA-256 differs from the recorded value)"
    return None


def _shards(path: Path) -> Path | None:
    """Return the folder of a state's shards, or None.

    None stands for an unsharded state or an unreadable header.
    """
    with suppress(SafetensorError, KeyError, ValueError):
        return path.with_name(_record(path)[SHARDS]["folder"])
    return None


def _read(path: Path) -> State:
    with safe_open(path, framework="pt") as file:
        names = file.keys()  # safe_open is no mapping: keys() is the only access to the names
        tensors = {name: file.get_tensor(name) for name in names}
    lines = bytes(tensors.pop("history").numpy()).decode().split("\n")
    rows = [json.loads(line) for line in lines if line]
    step = int(path.stem.removeprefix("step-"))
    return State(step, tensors, _record(path), rows, _shards(path))

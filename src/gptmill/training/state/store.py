"""Training states on disk, for bit-exact resumption of killed runs.

A state is one safetensors file: weights, optimizer, the history of steps up to now, and a record
of plain values in the header. The SHA-256 of the file is written afterwards, to a seal file in the
same folder: a state without a seal was never finished, and a state with a different hash was
damaged later. The last few states are kept: if the newest state is damaged, the previous state is
used.

The weights of the best evaluation are written once, to a file of their own, when they appear. The
states after it name the file with its SHA-256, and so stay as small as states without it.

In sharded training (shards.py), most tensors are in separate files, named by the state file and
stored beside the state file.
"""

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from gptmill.files import checked, sha256, write_text

LARGEST_SHARE = 0.05
"""Maximum share of the time spent on saving; slower saving means fewer states."""

LARGE = 10**9
"""Bytes of a state above which one finished state is kept, whatever `keep` says."""

SHARDS = "shards"
"""Key of a state's record for the folder, names and SHA-256 of the shard files."""

BEST = "best"
"""Key of a state's record for the file of the best weights, and their part of a state's tensors."""

FILE = re.compile(r"step-\d{9,}\.safetensors")

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
class BestFile:
    """The file of the best weights beside the states, and its SHA-256."""

    name: Annotated[str, Field(pattern=r"^best-\d{9,}\.safetensors$")]
    sha256: str


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
        self._best: BestFile | None = None
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

    def keep_best(
        self, step: int, tensors: Mapping[str, Tensor]
    ) -> tuple[BestFile, dict[str, Tensor]]:
        """Write the best weights, of `step`; return their file and its memory-mapped tensors.

        Raises OSError if the file cannot be written; earlier states and their best weights then
        stay unchanged.
        """
        path = self.folder / f"{BEST}-{step:09d}.safetensors"
        self.folder.mkdir(parents=True, exist_ok=True)
        _check_room(path, tensors)
        with _completed(path, tensors, {}) as partial:
            file = BestFile(path.name, sha256(partial))
            self._best = file  # before the file exists: the writer's thread removes unnamed files
            partial.replace(path)
        return file, _read_best(path)

    def load(self) -> State | None:
        """Return the newest undamaged state, or None.

        Damaged states are deleted and reported in `notes`.
        """
        self._finish()
        for partial in self.folder.glob(".*.safetensors.partial"):
            partial.unlink()
        self._drop_unnamed()
        for path in self._paths():
            try:
                _verify(path)
                state = _read(path)
            except ValueError as error:
                fault = f"is damaged ({error})"
            else:
                self._best = _best(state.record)
                return state
            self.notes.append(f"the state of step {_step(path):,} {fault} and is not used")
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
        keep = 1 if _size(state.tensors) > LARGE else self.keep
        state = self._set_aside(state, path)
        if self.leads:
            self._write_file(state, path, history)
            self._drop_states(keep)
        self._cost = time.monotonic() - started

    def _set_aside(self, state: State, path: Path) -> State:
        """Write tensors stored outside the state file; return the rest."""
        return state

    def _write_file(self, state: State, path: Path, history: Tensor) -> None:
        tensors = {**state.tensors, "history": history}
        _check_room(path, tensors)
        _save_file(tensors, path, {"record": json.dumps(dict(state.record))})

    def _drop_states(self, keep: int) -> None:
        for old in self._paths()[keep:]:
            _seal(old).unlink()
            old.unlink()
        self._drop_unnamed()

    def _drop_unnamed(self) -> None:
        """Delete best weights and shard folders that no state file names."""
        # files first, names second: `keep_best` may name and complete a file meanwhile
        files = list(self.folder.glob(f"{BEST}-*.safetensors"))
        named = {self._best.name} if self._best else set()
        for path in self._paths():
            named |= _named_best(path)
        for path in files:
            if path.name not in named:
                path.unlink()
        folders = [*self.folder.glob(f"*.{SHARDS}"), *self.folder.glob(f".*.{SHARDS}.partial")]
        in_use = {_shards(path) for path in self._paths()} if folders else set()
        for folder in folders:
            if folder not in in_use:
                shutil.rmtree(folder, ignore_errors=True)


def progress(folder: Path) -> SavedProgress | None:
    """Return the progress of a folder's newest state, unverified."""
    for path in _states(folder):
        with suppress(ValueError):
            record = _record(path)
            return SavedProgress(record["progress"]["step"], record["progress"]["seconds"])
    return None


def _states(folder: Path) -> list[Path]:
    """Return the files of finished states, newest first."""
    paths = (path for path in folder.glob("step-*.safetensors") if FILE.fullmatch(path.name))
    return sorted((path for path in paths if _seal(path).exists()), reverse=True)


def _size(tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes of tensors; a sharded tensor counts as a whole."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


@dataclass(frozen=True)
class _Progress:
    """The figures that a stage shows before a state is loaded."""

    step: int
    seconds: float


@dataclass(frozen=True)
class _Shards:
    """The folder of the shards, and the SHA-256 of each file."""

    folder: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    files: dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], str]


@dataclass(frozen=True)
class _Record:
    """The fields of a record that the store reads."""

    progress: _Progress
    shards: _Shards | None = None
    best: BestFile | None = None


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """Open a state file; raise ValueError with the path if unreadable."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path}: {error}") from None


def _record(path: Path) -> dict[str, Any]:
    """Return the record in a file's header; raise ValueError if incomplete."""
    with _open(path) as file:
        text = (file.metadata() or {}).get("record", "null")
    record: dict[str, Any] = _parse(text, path)
    checked(_Record, record, f"{path}, record")
    return record


def _parse(text: str | bytes, path: Path) -> Any:
    """Parse JSON with NaN and Infinity, which losses can be."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} holds text that is not JSON: {error}") from None


def _check_room(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise OSError if the disk has too little space for a file of tensors."""
    needed, free = _size(tensors), shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(errno.ENOSPC, no_room(path, f"{needed:,} bytes needed, {free:,} free"))


@contextmanager
def _completed(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]
) -> Iterator[Path]:
    """Write a file of tensors under a temporary name; yield the name, and remove what is left."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file(dict(tensors), partial, metadata=metadata)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        yield partial
    except SafetensorError as error:  # safetensors wraps the operating system's error
        raise OSError(errno.EIO, no_room(path, str(error))) from None
    finally:
        partial.unlink(missing_ok=True)


def _save_file(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a state file and the seal file.

    An interruption at any point leaves an existing state under the same name undamaged.
    """
    with _completed(path, tensors, metadata) as partial:
        seal, digest = _seal(path), sha256(partial) + "\n"
        if seal.exists():  # of the same step: the earlier file is valid until replaced
            write_text(seal, seal.read_text(encoding="ascii", errors="replace") + digest)
        partial.replace(path)
        write_text(seal, digest)


def no_room(path: Path, reason: str) -> str:
    """Return the error message for an unsaved state."""
    return (
        f"the training's state could not be saved as {path} ({reason}); earlier states are kept: "
        "make room and run the same command again"
    )


def _seal(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _verify(path: Path) -> None:
    """Raise ValueError unless a state's files have the recorded hashes."""
    recorded = _seal(path).read_text(encoding="ascii", errors="replace").split()
    if sha256(path) not in recorded:
        raise ValueError(f"{path}: the SHA-256 differs from the recorded value")
    record = _record(path)
    shards, best = record.get(SHARDS) or {"folder": "", "files": {}}, _best(record)
    files = {f"{shards['folder']}/{name}": value for name, value in shards["files"].items()}
    if best is not None:
        files[best.name] = best.sha256
    for name, value in files.items():
        file = path.parent / name
        if not file.is_file():
            raise ValueError(f"{file} is missing")
        if sha256(file) != value:
            raise ValueError(f"{file}: the SHA-256 differs from the recorded value")


def _best(record: Mapping[str, Any]) -> BestFile | None:
    """Return the file of the best weights that a checked record names."""
    return BestFile(**record[BEST]) if record.get(BEST) else None


def _named_best(path: Path) -> set[str]:
    """Return the name of a state's file of best weights; empty without it or if unreadable."""
    with suppress(ValueError):
        best = _best(_record(path))
        return {best.name} if best else set()
    return set()


def _shards(path: Path) -> Path | None:
    """Return the folder of a state's shards, or None.

    None stands for an unsharded state or an unreadable header.
    """
    with suppress(ValueError):
        shards = _record(path).get(SHARDS)
        return None if shards is None else path.with_name(shards["folder"])
    return None


def _read(path: Path) -> State:
    with _open(path) as file:
        names = file.keys()  # safe_open is no mapping: keys() is the only access to the names
        tensors = {name: file.get_tensor(name) for name in names}
    history = tensors.pop("history", None)
    if history is None or history.dtype != torch.uint8 or history.ndim != 1:
        raise ValueError(f"{path} has no history of bytes")
    rows = [_parse(line, path) for line in history.numpy().tobytes().splitlines() if line]
    checked(list[dict[str, Any]], rows, f"{path}, history")
    record = _record(path)
    best = _best(record)
    if best is not None:
        weights = _read_best(path.with_name(best.name))
        tensors |= {f"{BEST}/{name}": tensor for name, tensor in weights.items()}
    return State(_step(path), tensors, record, rows, _shards(path))


def _read_best(path: Path) -> dict[str, Tensor]:
    """Return the memory-mapped tensors of a file of best weights."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: {error}") from None

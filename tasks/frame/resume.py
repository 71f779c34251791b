"""Where a stage's training state lies, and whether it is this training's.

`.state/STAGE/KEY/` with DVC's own key: the hash of the stage's command, inputs, params and
outputs, as DVC names its run cache. So a state is found again by what makes the same bytes
and by nothing else. It stays until DVC holds the outputs under that key: a stage that was cut
off between its end and DVC's commit writes them anew without training.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TextIO

from gptmill.files import read_json, write_json
from gptmill.records import content_hash, file_hashes
from gptmill.training.state.store import StateStore, progress
from tasks.processes.locks import take
from tasks.processes.progress import duration
from tasks.project import graph
from tasks.project.environment import ROOT
from tasks.tracking.runs import flatten

STATES = ROOT / ".state"
NOTE = "training.json"
CLAIM_TIMEOUT_S = 10.0
"""Seconds that a process which is ending is waited for."""

_CLAIMED: dict[str, TextIO] = {}


@dataclass(frozen=True)
class ResumeConfig:
    """params.yaml `resume:`; no stage depends on it, since it cannot change a byte."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    every_seconds: float
    keep: int
    protect_minutes: float

    def __post_init__(self) -> None:
        if self.every_seconds < 0 or self.protect_minutes < 0:
            raise ValueError("every_seconds and protect_minutes must be 0 or more")
        if self.keep < 1:
            raise ValueError(f"keep is {self.keep}; it must be at least 1")


@dataclass(frozen=True)
class Training:
    """A training's place on disk and what it is a function of."""

    stage: str
    entry: dict[str, Any]
    code: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """The MD5 of each file of the code that it depends on, by dep and by path below it."""

    @property
    def key(self) -> str:
        """Return DVC's name for this run of the stage."""
        return key(self.entry)

    @property
    def folder(self) -> Path:
        """Return where its states are."""
        return STATES / self.stage / self.key

    @property
    def run(self) -> str | None:
        """Return the MLflow run that this training began in, if it ever began."""
        note = self.folder / NOTE
        return read_json(note)["run"] if note.exists() and progress(self.folder) else None

    def store(self, config: ResumeConfig, run: str) -> StateStore:
        """Open its states, and note whose they are."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.note(run)
        return StateStore(self.folder, every=config.every_seconds, keep=config.keep)

    def note(self, run: str) -> None:
        """Note beside the states whose they are, and the MLflow run that they belong to."""
        content = {"entry": self.entry, "code": self.code, "run": run}
        write_json(self.folder / NOTE, content)


def claim(stage: str) -> None:
    """Keep other processes out of a stage's states and outputs until this process ends.

    DVC does so for what it starts, but a stage whose DVC was killed is still ending, and a
    stage can be run without DVC. Raises ValueError where another process stays at it.
    """
    if stage in _CLAIMED:
        return
    path = STATES / f"{stage}.lock"
    file = take(path, patience=CLAIM_TIMEOUT_S)
    if file is None:
        raise ValueError(
            f"{stage}: process {path.read_text(encoding='utf-8')} is at this stage: wait for it, "
            "or end it"
        )
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    _CLAIMED[stage] = file


def training(stage: str, hashes: Mapping[str, str]) -> Training:
    """Return the training that a stage with inputs of these hashes is, as things stand now."""
    described = graph.stages()[stage]
    deps = [
        {"path": path, "hash": "md5", "md5": hashes.get(path) or content_hash(ROOT / path)}
        for path in sorted(described["deps"])
    ]
    code = {dep: file_hashes(ROOT / dep) for dep in described["deps"] if dep not in hashes}
    params = {name: graph.params().get(name) for name in described["params"]}
    return Training(
        stage,
        {
            "cmd": described["cmd"],
            "deps": deps,
            "params": {"params.yaml": params},
            "outs": sorted(described["outs"]),
        },
        code,
    )


def key(entry: Mapping[str, Any]) -> str:
    """Return DVC's key of an entry of dvc.lock: the name of its folder in the run cache."""
    outs = [out["path"] if isinstance(out, dict) else out for out in entry["outs"]]
    deps = [
        {name: value for name, value in dep.items() if name not in ("size", "nfiles")}
        for dep in entry["deps"]
    ]
    content = json.dumps({**entry, "deps": deps, "outs": outs}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def clean() -> None:
    """Remove the states of trainings whose outputs DVC holds."""
    locked = {name: key(entry) for name, entry in graph.lock().items() if "deps" in entry}
    for stage in graph.stages():
        for folder in _folders(stage):
            if locked.get(stage) == folder.name or _in_run_cache(folder.name):
                shutil.rmtree(folder, ignore_errors=True)


def _in_run_cache(name: str) -> bool:
    """Return whether DVC can bring the outputs of a key back by itself.

    It notes the run first and takes in the outputs after: killed between, it has the note alone.
    """
    notes = (ROOT / ".dvc/cache/runs" / name[:2] / name).glob("?" * 64)
    return any(
        all(_in_cache(out["md5"]) for out in graph.read_yaml(note)["outs"]) for note in notes
    )


def _in_cache(value: str) -> bool:
    path = ROOT / ".dvc/cache/files/md5" / value[:2] / value[2:]
    if not (path.exists() and value.endswith(".dir")):
        return path.exists()
    return all(_in_cache(entry["md5"]) for entry in read_json(path))


def others(found: Training, config: ResumeConfig) -> Iterator[str]:
    """Drop what was trained for this stage from other inputs; yield a line on each.

    Raises ValueError, naming what differs, where more work than `protect_minutes` would go.
    """
    for folder in _folders(found.stage):
        if folder == found.folder:
            continue
        done = progress(folder)
        if done is not None:
            lost = f"{duration(done.seconds)} of training ({done.step:,} steps)"
            differs = "; ".join(differences(read_json(folder / NOTE), found))
            if done.seconds > 60 * config.protect_minutes:
                raise ValueError(
                    f"{found.stage}: {lost} would be lost, since this has changed: {differs}. Put "
                    f"it back to go on from there; `make fresh STAGE={found.stage}` begins anew; "
                    f"`make accept STAGE={found.stage}` goes on from there all the same, for a "
                    "change that keeps the bytes"
                )
            yield f"dropped: {lost}, before this changed: {differs}"
        shutil.rmtree(folder, ignore_errors=True)


def differences(note: Mapping[str, Any], now: Training) -> list[str]:
    """Name what a training differs in from the one that a note tells of: files, params, command."""
    before = note["entry"]
    found = [name for name in ("cmd", "outs") if before[name] != now.entry[name]]
    old, new = ({dep["path"]: dep["md5"] for dep in entry["deps"]} for entry in (before, now.entry))
    for path in sorted({*old, *new}):
        if old.get(path) != new.get(path):
            found += _changed_files(path, note.get("code", {}), now.code)
    old, new = (flatten(entry["params"]["params.yaml"]) for entry in (before, now.entry))
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            was, is_now = (json.dumps(values.get(name)) for values in (old, new))
            found.append(f"{name} was {was}, is {is_now}")
    return found


def _changed_files(
    dep: str, before: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """Name the files of a dep that changed; the dep itself where its files were not noted."""
    if dep not in before or dep not in now:
        return [dep]
    names = {*before[dep], *now[dep]}
    changed = sorted(name for name in names if before[dep].get(name) != now[dep].get(name))
    return [(Path(dep) / name).as_posix() for name in changed]


def fresh(stage: str) -> list[str]:
    """Remove every state of a stage; return a line on each."""
    lines = []
    for folder in _folders(stage):
        done = progress(folder)
        steps = f"{done.step:,} steps, {duration(done.seconds)}" if done else "nothing"
        shutil.rmtree(folder)
        lines.append(f"{stage}: dropped {steps} of training")
    return lines


def adopt(found: Training) -> str | None:
    """Take over the state with the most work for this training; return a line, None without one."""
    held = [(progress(folder), folder) for folder in _folders(found.stage)]
    with_work = [(done, folder) for done, folder in held if done and folder != found.folder]
    if not with_work:
        return None
    done, folder = max(with_work, key=lambda pair: pair[0].seconds)
    shutil.rmtree(found.folder, ignore_errors=True)
    folder.rename(found.folder)
    found.note(read_json(found.folder / NOTE)["run"])
    return f"{found.stage}: goes on from step {done.step:,}, made before the change"


def _folders(stage: str) -> list[Path]:
    return sorted(path for path in (STATES / stage).glob("*") if path.is_dir())

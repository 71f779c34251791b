"""The training state of a stage on disk, and the decision whether a run may resume from it.

States lie in `.state/STAGE/KEY/`, or in the same place of the folder that workers share. KEY is
DVC's own key of a run: the hash of the stage's command, inputs, params and outputs. So a state is
found by everything that determines the bytes, and by nothing more. States stay until DVC holds the
outputs under the key: a stage that was interrupted between its end and DVC's commit rewrites the
outputs without training.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from gptmill.files import read_json, write_json
from gptmill.records import content_hash, file_hashes
from gptmill.training.state.store import StateStore, progress
from tasks.frame import states
from tasks.processes.progress import duration
from tasks.project import graph
from tasks.project.cache import cached_file, cached_runs
from tasks.project.environment import ROOT
from tasks.tracking.runs import flatten

NOTE = "training.json"


@dataclass(frozen=True)
class ResumeConfig:
    """Section `resume` of params.yaml. No stage depends on the section: it cannot change a byte."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    every_seconds: float
    keep: int
    protect_minutes: float

    def __post_init__(self) -> None:
        if self.every_seconds < 0 or self.protect_minutes < 0:
            raise ValueError("every_seconds and protect_minutes must be 0 or more")
        if self.keep < 1:
            raise ValueError(f"keep is {self.keep} but must be at least 1")


@dataclass(frozen=True)
class Training:
    """A training, identified by everything that determines its result."""

    stage: str
    entry: dict[str, Any]
    code: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """The MD5 of each code file, by dep and by path below the dep."""

    @property
    def key(self) -> str:
        """Return DVC's key of this run of the stage."""
        return key(self.entry)

    @property
    def folder(self) -> Path:
        """Return the folder of the states."""
        return states.of_stage(self.stage) / self.key

    @property
    def shards(self) -> Path:
        """Return the folder of the shards, which several machines may write before the stage."""
        return self.folder / "shards"

    @property
    def run(self) -> str | None:
        """Return the MLflow run of the training; None before the first state."""
        note = read_note(self.folder / NOTE)
        return str(note["run"]) if note and "run" in note and progress(self.folder) else None

    def store(self, config: ResumeConfig, run: str) -> StateStore:
        """Open the states, and note their training and MLflow run.

        Raises ValueError while another worker runs this training.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.claim()
        self.note(run)
        return StateStore(self.folder, every=config.every_seconds, keep=config.keep)

    def origin(self) -> str:
        """Return a line that says where the training begins, and who saved the state."""
        return states.origin(self.folder, read_note(self.folder / NOTE))

    def claim(self) -> None:
        """Lock the states until this process ends; raise ValueError while another worker does."""
        states.hold(self.stage, self.folder / "lock")

    def note(self, run: str) -> None:
        """Write the note that identifies the states' training, MLflow run and worker."""
        content = {"entry": self.entry, "code": self.code, "run": run, "worker": states.worker()}
        write_json(self.folder / NOTE, content)


def training(stage: str, described: Mapping[str, Any], hashes: Mapping[str, str]) -> Training:
    """Return the training of a stage, from its dvc.yaml entry and the hashes of its inputs."""
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
    """Return DVC's key of an entry of dvc.lock: the name of a folder in the run cache."""
    outs = [out["path"] if isinstance(out, dict) else out for out in entry["outs"]]
    deps = [
        {name: value for name, value in dep.items() if name not in ("size", "nfiles")}
        for dep in entry["deps"]
    ]
    content = json.dumps({**entry, "deps": deps, "outs": outs}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def clean() -> None:
    """Remove the states of finished trainings."""
    for folder in finished():
        shutil.rmtree(folder, ignore_errors=True)


def finished() -> list[Path]:
    """Return the states of trainings with outputs in DVC's cache."""
    locked = {name: key(entry) for name, entry in graph.lock().items() if "deps" in entry}
    return [
        folder
        for stage in graph.stages()
        for folder in states.folders(stage)
        if (locked.get(stage) == folder.name or _in_run_cache(folder.name))
        and states.is_free(folder)
    ]


def _in_run_cache(name: str) -> bool:
    """Return whether DVC can restore the outputs of a key.

    DVC records the run before it caches the outputs: killed in between, only the record exists.
    """
    notes = cached_runs(ROOT, name).glob("?" * 64)
    return any(
        all(_in_cache(out["md5"]) for out in graph.read_yaml(note)["outs"]) for note in notes
    )


def _in_cache(value: str) -> bool:
    path = cached_file(ROOT, value)
    if not (path.exists() and value.endswith(".dir")):
        return path.exists()
    return all(_in_cache(entry["md5"]) for entry in read_json(path))


def others(current: Training, config: ResumeConfig) -> Iterator[str]:
    """Drop the states of earlier trainings of this stage; yield a line about each.

    Raises ValueError, naming the changes, if more than `protect_minutes` of training would be lost.
    """
    stage = current.stage
    for folder in _folders(stage):
        if folder == current.folder:
            continue
        saved = progress(folder)
        if saved is not None:
            lost = f"{duration(saved.seconds)} of training ({saved.step:,} steps)"
            changes = "; ".join(differences(read_note(folder / NOTE), current))
            if saved.seconds > 60 * config.protect_minutes:
                raise ValueError(
                    f"{stage}: {lost} would be lost, because of changes: {changes}. Revert the "
                    f"changes to resume, run `make fresh STAGE={stage}` to start from scratch, or "
                    f"`make accept STAGE={stage}` to resume despite changes that keep the bytes"
                )
            yield f"dropped {lost}, because of changes: {changes}"
        shutil.rmtree(folder, ignore_errors=True)


def read_note(path: Path) -> dict[str, Any] | None:
    """Load a JSON mapping of .state; an unreadable file is reported and counts as none."""
    if not path.exists():
        return None
    try:
        content = read_json(path)
    except (ValueError, OSError) as error:
        reason = str(error)
    else:
        if isinstance(content, dict):
            return content
        reason = f"{path} holds no mapping"
    print(f"{reason}; the file is not used", file=sys.stderr, flush=True)
    return None


def differences(note: Mapping[str, Any] | None, now: Training) -> list[str]:
    """Return the files, params and command that differ between a note's training and `now`.

    A note that is missing, or that holds other content than `Training.note` writes, names none.
    """
    try:
        return _differences(note or {}, now)
    except (KeyError, TypeError, AttributeError):
        return [f"unknown, since {NOTE} beside the state is missing or damaged"]


def _differences(note: Mapping[str, Any], now: Training) -> list[str]:
    before = note["entry"]
    changes = [name for name in ("cmd", "outs") if before[name] != now.entry[name]]
    old, new = ({dep["path"]: dep["md5"] for dep in entry["deps"]} for entry in (before, now.entry))
    for path in sorted({*old, *new}):
        if old.get(path) != new.get(path):
            changes += _changed_files(path, note.get("code", {}), now.code)
    old, new = (flatten(entry["params"]["params.yaml"]) for entry in (before, now.entry))
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            was, is_now = (json.dumps(values.get(name)) for values in (old, new))
            changes.append(f"{name} was {was}, is {is_now}")
    return changes


def _changed_files(
    dep: str, before: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """Return the changed files of a dep, or the dep itself if the note has no file hashes."""
    if dep not in before or dep not in now:
        return [dep]
    names = {*before[dep], *now[dep]}
    changed = sorted(name for name in names if before[dep].get(name) != now[dep].get(name))
    return [(Path(dep) / name).as_posix() for name in changed]


def fresh(stage: str) -> list[str]:
    """Remove all states of a stage, but not those of other workers; return a line about each."""
    lines = []
    for folder in _folders(stage):
        saved = progress(folder)
        steps = f"{saved.step:,} steps, {duration(saved.seconds)}" if saved else "nothing"
        shutil.rmtree(folder)
        lines.append(f"{stage}: dropped {steps} of training")
    left = [str(folder) for folder in states.folders(stage)]
    return [*lines, *(f"{stage}: left the state of another worker, {folder}" for folder in left)]


def adopt(current: Training) -> str | None:
    """Give the longest-trained state to this training; return a line, None without a state."""
    states = [(progress(folder), folder) for folder in _folders(current.stage)]
    earlier = [(saved, folder) for saved, folder in states if saved and folder != current.folder]
    if not earlier:
        return None
    saved, folder = max(earlier, key=lambda pair: pair[0].seconds)
    shutil.rmtree(current.folder, ignore_errors=True)
    folder.rename(current.folder)
    note = read_note(current.folder / NOTE) or {}
    current.note(str(note.get("run", "")))
    return f"{current.stage}: resumes from step {saved.step:,}, trained before the change"


def _folders(stage: str) -> list[Path]:
    """Return the states of a stage's trainings that this worker may drop."""
    return [folder for folder in states.folders(stage) if states.is_own(read_note(folder / NOTE))]

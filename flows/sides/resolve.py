"""A side of a comparison by its name: a folder, a git revision, an MLflow run or a version.

The work tree stays as it is: recorded outputs are links to DVC's cache in a temporary folder.
"""

import re
from pathlib import Path

from flows.sides import records
from flows.sides.cached import ARTIFACTS, link_outputs
from flows.sides.runs import makers, record_of, side_of_run
from flows.sides.versions import side_of_version
from flows.trees.tree import git
from gptmill.comparing.side import Side
from tasks.project.environment import ROOT
from tasks.project.graph import parse_lock, stages
from tasks.project.hashes import known

RUN = re.compile("[0-9a-f]{32}")
BESIDE = ("split", "tokenize")
"""Outputs beside a checkpoint folder that hold the rows and texts seen in training."""
FORMS = (
    "allowed are a folder with the stages' artifacts (artifacts), a checkpoint folder of a stage "
    "(backup/classify), a git revision with a dvc.lock (HEAD~1, a branch, a tag, a commit), the id "
    "of an MLflow run of the pipeline or a stage (32 hexadecimal digits, on the run's page), "
    "champion, candidate, and a registered version (classifier@champion, "
    "models:/gptmill-classifier/3)"
)


def resolve(letter: str, name: str, temporary: Path) -> Side:
    """Return the side with a name; links to recorded outputs go into a temporary folder.

    Raises ValueError with the allowed forms for any other name.
    """
    folder = (ROOT / name).resolve()
    if any((folder / stage).is_dir() for stage in stages()):
        return _of_folder(letter, name, folder)
    if folder.name in stages() and folder.is_dir():
        return _of_checkpoint(letter, name, folder, temporary)
    version = side_of_version(letter, name, temporary)
    if version is not None:
        return version
    commit = _commit(name)
    if commit is not None:
        return _of_revision(letter, name, commit, temporary)
    if RUN.fullmatch(name):
        side = side_of_run(letter, name, temporary)
        if side is not None:
            return side
    if folder == ROOT / "artifacts":
        raise ValueError(f"{letter}={name}: there are no artifacts yet; run `make pipeline` first")
    found = "a folder without an artifact of a stage" if folder.is_dir() else "none of these"
    raise ValueError(f"{letter}={name} is {found}: {FORMS}")


def _commit(name: str) -> str | None:
    """Return the commit of a git revision, None for other names."""
    try:
        return git("rev-parse", "--verify", "--end-of-options", f"{name}^{{commit}}", cwd=ROOT)
    except ValueError:
        return None


def _of_folder(letter: str, name: str, folder: Path) -> Side:
    """Return the side of a folder, with the record in the dvc.lock beside the folder."""
    lock = folder.parent / "dvc.lock"
    if folder.name != "artifacts" or not lock.is_file():
        return Side(letter, name, folder, origin="a folder")
    text = lock.read_text(encoding="utf-8")
    entries = parse_lock(text, f"{lock}")
    changed = {
        stage
        for stage, entry in entries.items()
        for path, digest in records.outputs({stage: entry}).items()
        if (folder.parent / path).exists() and known().content_hash(folder.parent / path) != digest
    }
    if changed:
        names = ", ".join(stage for stage in entries if stage in changed)
        return Side(letter, name, folder, origin=f"a folder, other than in dvc.lock: {names}")
    origin = "a folder, as recorded in dvc.lock"
    return Side(letter, name, folder, origin=origin, record=_record(entries))


def _record(entries: records.Entries) -> records.Record:
    """Return the record of dvc.lock's entries, with commits and environment from MLflow."""
    record = records.of_lock(entries)
    made = record_of([run for _, run in makers(record[records.OUTPUTS])])
    known = {kind: made[kind] for kind in ("commit", "environment") if made.get(kind)}
    return {**record, **known}


def _of_checkpoint(letter: str, name: str, folder: Path, temporary: Path) -> Side:
    """Return the side of one stage's folder, with the data beside the folder."""
    links = temporary / letter
    links.mkdir()
    for path in (folder, *map(folder.parent.joinpath, BESIDE)):
        if path.is_dir() and not (links / path.name).exists():
            (links / path.name).symlink_to(path)
    return Side(letter, name, links, origin=f"the output folder of {folder.name} alone")


def _of_revision(letter: str, name: str, commit: str, temporary: Path) -> Side:
    try:
        text = git("show", f"{commit}:./dvc.lock", cwd=ROOT)
    except ValueError as error:
        raise ValueError(f"{letter}={name} is a commit without a dvc.lock ({error})") from None
    entries = parse_lock(text, f"dvc.lock of {name}")
    recorded, folder = records.outputs(entries), temporary / letter
    missing = link_outputs(recorded, folder)
    if len(missing) == len(recorded):
        raise ValueError(
            f"{letter}={name}: DVC's cache has none of the outputs in that commit's dvc.lock: "
            "`dvc fetch --all-commits` fetches them from a remote, `make pipeline` at that commit "
            "makes them again"
        )
    subject = git("log", "-1", "--format=%h %cs %s", commit, cwd=ROOT)
    record = {**_record(entries), "commit": {"commit": subject}}
    absent = {
        path.removeprefix(ARTIFACTS): f"DVC's cache lacks {path} of that commit" for path in missing
    }
    return Side(letter, name, folder, origin=f"commit {subject}", absent=absent, record=record)

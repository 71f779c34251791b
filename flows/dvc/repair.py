"""Repair of DVC's records after a kill.

`repair` must run before DVC runs again: DVC 3.67 writes some of its records in place, and a kill
during DVC's commit leaves half-written records, on which every later DVC command fails:
- `.dvc/tmp/rwlock`, empty or truncated, stops every command;
- an empty folder in the run cache stops `repro` of a stage, with a TypeError;
- `dvc.lock` or `data.dvc`, truncated, is unreadable, or gives DVC a wrong hash.

The repair loses no work. A lock of dead processes has no owner, an empty folder holds no
record, and the last commit has a complete dvc.lock, from which `repro` continues: the outputs
listed in the truncated dvc.lock are in the cache, and the run cache maps them to their stages.
"""

import configparser
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from gptmill.files import write_bytes, write_text
from tasks.processes import locks
from tasks.project.cache import cache_folder
from tasks.project.environment import ROOT

LOCK_TIMEOUT_S = 3.0  # seconds for a running DVC to finish its write
# seconds within which a running DVC of a second tree with the same cache fills a new folder
SETTLED = 1.0
CONFLICT = b"\n>>>>>>> "
HASH = re.compile(r"[0-9a-f]{32}(\.dir)?")


def repair(root: Path = ROOT) -> None:
    """Repair DVC's records, and report each repair.

    Intact records stay unchanged, and no report is printed.
    """
    _repair_rwlock(root)
    for record in ("dvc.lock", "data.dvc"):
        _repair_record(root, record)
    _repair_runs(root)
    _allow_no_git(root)


def _report(record: str) -> None:
    message = f"{record}: DVC was killed while writing this record; repaired"
    print(message, file=sys.stderr, flush=True)


def _allow_no_git(root: Path) -> None:
    """Let DVC work in a project without a git repository, such as an unpacked archive."""
    path = root / ".dvc" / "config.local"
    settings = configparser.ConfigParser(interpolation=None, strict=False)
    settings.read([path.with_name("config"), path], encoding="utf-8")
    if (root / ".git").exists() or settings.has_option("core", "no_scm"):
        return
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    write_text(path, f"[core]\n    no_scm = true\n{before}")
    message = (
        "this folder is no git repository: DVC works without git, and runs have no commit. After "
        "`git init`, remove `no_scm` from .dvc/config.local"
    )
    print(message, file=sys.stderr, flush=True)


@contextmanager
def _hold(lock: Path) -> Iterator[bool]:
    """Hold a lock of DVC; yield whether it was acquired.

    A running DVC keeps its lock, and then completes the record by itself.
    """
    file = locks.take(lock, patience=LOCK_TIMEOUT_S)
    try:
        yield file is not None
    finally:
        if file is not None:
            file.close()


def _repair_rwlock(root: Path) -> None:
    path = root / ".dvc" / "tmp" / "rwlock"
    if not path.exists() or _is_json(path):
        return
    with _hold(path.with_name("rwlock.lock")) as acquired:
        if acquired and path.exists() and not _is_json(path):
            path.unlink()
            _report(".dvc/tmp/rwlock")


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def _repair_record(root: Path, name: str) -> None:
    """Restore a truncated record from the last commit.

    The record is removed where the last commit has no intact version. The truncated file is
    saved in .state/. A merge that stopped at a conflict is left to the user.
    """
    path = root / name
    if not _is_truncated(path):
        return
    with _hold(root / ".dvc" / "tmp" / "lock") as acquired:
        if not acquired or not _is_truncated(path):
            return
        _check_git(root, name)
        backup = root / ".state" / f"{name}.cut"
        backup.parent.mkdir(exist_ok=True)
        write_bytes(backup, path.read_bytes())
        show = ["git", "show", f"HEAD:./{name}"]
        result = subprocess.run(show, cwd=root, capture_output=True, check=False)
        saved = f"the truncated file is saved as {backup.relative_to(root)}"
        if result.returncode == 0 and is_record(result.stdout):
            write_bytes(path, result.stdout)
            _report(f"{name} (restored from the last commit; {saved})")
        else:
            path.unlink()
            _report(f"{name} (removed; {saved})")


def _check_git(root: Path, name: str) -> None:
    """Raise ValueError if a repository is there and git does not read it.

    Another user may own the folder: then the last commit is not known, and nothing is discarded.
    """
    command = ["git", "rev-parse", "--git-dir"]
    try:
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        reason = " ".join(result.stderr.split()) if result.returncode else ""
    except OSError as error:
        reason = str(error)
    if reason and (root / ".git").exists():
        raise ValueError(f"{name} is truncated, and git cannot restore the file: {reason}")


def _is_truncated(path: Path) -> bool:
    if not path.exists():
        return False
    content = path.read_bytes()
    return CONFLICT not in content and not is_record(content)


def is_record(content: bytes) -> bool:
    """Return whether DVC reads the content as dvc.lock or data.dvc.

    Every hash must be complete. A file that ends between two stages or entries counts as a
    record, too: the run cache holds the missing entries.
    """
    try:
        record = YAML(typ="safe").load(content)
    except (YAMLError, UnicodeDecodeError):
        return False
    if not isinstance(record, dict):
        return False
    stages = record.get("stages") if "schema" in record else {"data": record}
    return isinstance(stages, dict) and all(map(_is_complete, stages.values()))


def _is_complete(stage: Any) -> bool:
    if not isinstance(stage, dict) or None in stage.values():
        return False
    entries = [*stage.get("deps", []), *stage.get("outs", [])]
    return all(
        isinstance(entry, dict)
        and None not in entry.values()
        and ("md5" not in entry or HASH.fullmatch(str(entry["md5"])))
        for entry in entries
    )


def _repair_runs(root: Path) -> None:
    """Remove run-cache folders that hold no record and await none."""
    if not _empty_run_folders(root):
        return
    with _hold(root / ".dvc" / "tmp" / "lock") as acquired:
        folders = _empty_run_folders(root) if acquired else []
        if folders:
            time.sleep(SETTLED)
        for folder in folders:
            with suppress(OSError):  # DVC has filled the folder meanwhile
                folder.rmdir()
                _report(f".dvc/cache/runs/{folder.parent.name}/{folder.name[:8]}...")


def _empty_run_folders(root: Path) -> list[Path]:
    folders = (cache_folder(root) / "runs").glob("??/*/")
    return [folder for folder in folders if not any(folder.iterdir())]

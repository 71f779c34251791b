"""What a DVC that was killed in its commit leaves behind, put right before the next one starts.

DVC 3.67 writes some of its records in place, and fails on a half of one every time after:
- `.dvc/tmp/rwlock`, empty or cut short, stops each command;
- an empty folder in the run cache stops `repro` of one stage, with a TypeError;
- `dvc.lock` and `data.dvc`, cut short, are no records, or such that DVC reads a wrong hash.

No work is lost by any of them. A lock of dead processes is nobody's, an empty folder says
nothing, and the last commit has a whole dvc.lock, from which `repro` gets on: the outputs that
this one knew are in the cache, and the run cache knows whose they are.
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

from gptmill.files import write_bytes
from tasks.processes import locks
from tasks.project.environment import ROOT

LOCK_TIMEOUT_S = 3.0  # seconds for a living DVC to be done with what it writes
SETTLED = 1.0  # seconds in which a living DVC, of another tree with this cache, fills a new folder
CONFLICT = b"\n>>>>>>> "
HASH = re.compile(r"[0-9a-f]{32}(\.dir)?")


def repair(root: Path = ROOT) -> None:
    """Put DVC's records right, and say what was wrong; nothing where they are whole."""
    _repair_rwlock(root)
    for record in ("dvc.lock", "data.dvc"):
        _repair_record(root, record)
    _repair_runs(root)


def _tell(what: str) -> None:
    print(f"{what}: DVC was killed while it wrote it; put right", file=sys.stderr, flush=True)


@contextmanager
def _held(lock: Path) -> Iterator[bool]:
    """Hold one of DVC's own locks; False where a living DVC keeps it, which then writes well."""
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
    with _held(path.with_name("rwlock.lock")) as alone:
        if alone and path.exists() and not _is_json(path):
            path.unlink()
            _tell(".dvc/tmp/rwlock")


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def _repair_record(root: Path, name: str) -> None:
    """Take a record from the last commit where this one is cut; remove it where there is none.

    What was there is kept in .state/. A merge that stopped at a conflict is the user's.
    """
    path = root / name
    if not _is_cut(path):
        return
    with _held(root / ".dvc" / "tmp" / "lock") as alone:
        if not alone or not _is_cut(path):
            return
        kept = root / ".state" / f"{name}.cut"
        kept.parent.mkdir(exist_ok=True)
        write_bytes(kept, path.read_bytes())
        show = ["git", "show", f"HEAD:./{name}"]
        done = subprocess.run(show, cwd=root, capture_output=True, check=False)
        if done.returncode == 0 and is_record(done.stdout):
            write_bytes(path, done.stdout)
            _tell(f"{name}, now that of the last commit (this one is in {kept.relative_to(root)})")
        else:
            path.unlink()
            _tell(f"{name}, begun anew (this one is in {kept.relative_to(root)})")


def _is_cut(path: Path) -> bool:
    if not path.exists():
        return False
    content = path.read_bytes()
    return CONFLICT not in content and not is_record(content)


def is_record(content: bytes) -> bool:
    """Return whether this is a dvc.lock or a data.dvc that DVC reads, with no hash cut short.

    One that ends between two stages or entries is one, too: the run cache knows the rest.
    """
    try:
        read = YAML(typ="safe").load(content)
    except (YAMLError, UnicodeDecodeError):
        return False
    if not isinstance(read, dict):
        return False
    stages = read.get("stages") if "schema" in read else {"data": read}
    return isinstance(stages, dict) and all(map(_is_whole, stages.values()))


def _is_whole(stage: Any) -> bool:
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
    """Remove folders of the run cache that hold no record and are about to get none."""
    if not _empty_runs(root):
        return
    with _held(root / ".dvc" / "tmp" / "lock") as alone:
        before = _empty_runs(root) if alone else []
        if before:
            time.sleep(SETTLED)
        for folder in before:
            with suppress(OSError):  # it has been filled
                folder.rmdir()
                _tell(f".dvc/cache/runs/{folder.parent.name}/{folder.name[:8]}...")


def _empty_runs(root: Path) -> list[Path]:
    found = (_cache(root) / "runs").glob("??/*/")
    return [path for path in found if not any(path.iterdir())]


def _cache(root: Path) -> Path:
    """Return DVC's cache as its settings say; asking DVC itself takes half a second."""
    place = root / ".dvc" / "cache"
    for name in ("config", "config.local"):
        settings = configparser.ConfigParser(interpolation=None)
        settings.read(root / ".dvc" / name, encoding="utf-8")
        if settings.has_option("cache", "dir"):
            place = root / ".dvc" / settings.get("cache", "dir")
    return place

"""DVC's part of the garbage: cached files that no record names, and runs that cannot be restored.

`dvc gc` knows neither MLflow's versions nor the refs of runs, and leaves the run cache as it is.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from flows.sides.cached import FOLDER
from flows.trees import tree
from tasks.project.cache import cache_folder, cached_digest, cached_file
from tasks.project.environment import ROOT
from tasks.project.graph import read_yaml

MD5 = re.compile(r"md5: ([0-9a-f]{32}(?:\.dir)?)\b")
OBJECT = re.compile(r"[0-9a-f]{30}(\.dir)?")
RECORDS = ("dvc.lock", "*/dvc.lock", "*.dvc")
"""Files with hashes of DVC's, in any folder; git's * stands for slashes, too."""
OURS = "refs/gptmill/*"


def is_own() -> bool:
    """Return whether the cache lies in the project: another cache may serve other projects."""
    return cache_folder(ROOT).is_relative_to(ROOT.resolve())


def digests(refs: Iterable[str]) -> set[str]:
    """Return the hashes in the records of the work trees, of the user's history and of `refs`."""
    return set(MD5.findall("\n".join([*_in_trees(), *_in_history(refs)])))


def _in_trees() -> Iterator[str]:
    """Yield the records of this tree and of all worktrees of the repository."""
    for folder in {ROOT, *_worktrees()}:
        for file in _records(folder):
            yield file.read_text(encoding="utf-8", errors="replace")


def _worktrees() -> list[Path]:
    try:
        lines = tree.git("worktree", "list", "--porcelain").splitlines()
    except ValueError:  # no git
        return []
    folders = [Path(line.removeprefix("worktree ")) for line in lines if line[:9] == "worktree "]
    return [folder for folder in folders if folder.is_dir()]


def _records(folder: Path) -> Iterator[Path]:
    listing = ("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *RECORDS)
    try:
        names = tree.git(*listing, cwd=folder).split("\0")
    except ValueError:
        names = [file.name for file in (*folder.glob("*.dvc"), folder / "dvc.lock")]
    files = [folder / name for name in [*names, "dvc.lock"] if name]
    return (file for file in dict.fromkeys(files) if file.is_file())


def _in_history(refs: Iterable[str]) -> Iterator[str]:
    """Yield all versions of the records, of each branch, tag and stash, and of the tips of `refs`.

    Below the user's own commits, the record of a run adds a single commit.
    """
    words = ("rev-list", "--objects", "--full-history", f"--exclude={OURS}", "--all", "--reflog")
    try:
        listed = tree.git(*words, *refs, "--", *RECORDS).splitlines()
    except ValueError:  # no git, or no commit
        return
    named = [line.partition(" ") for line in listed]
    names = [name for name, _, path in named if Path(path).suffix in (".dvc", ".lock")]
    yield tree.git("cat-file", "--batch", text="".join(f"{name}\n" for name in names))


def with_files(named: Iterable[str]) -> set[str]:
    """Return hashes, and the hashes of the files in the folders among them."""
    found = set(named)
    for digest in [one for one in found if one.endswith(FOLDER)]:
        try:
            found.update(str(one["md5"]) for one in json.loads(_listing(digest)))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not here, or damaged
    return found


def _listing(digest: str) -> bytes:
    return cached_file(ROOT, digest).read_bytes()


def unused_files(used: set[str]) -> list[Path]:
    """Return the cached files whose hash is not used; lists of folders come first."""
    files = (cache_folder(ROOT) / "files" / "md5").glob("??/*")
    found = [file for file in files if OBJECT.fullmatch(file.name)]
    unused = [file for file in found if cached_digest(file) not in used]
    return sorted(unused, key=lambda file: (not file.name.endswith(FOLDER), file))


def broken_runs(used: set[str]) -> list[Path]:
    """Return the records of the run cache with an output that is not used."""
    files = [file for file in (cache_folder(ROOT) / "runs").glob("??/*/*") if file.is_file()]
    return [file for file in files if not _outputs(file) <= used]


def _outputs(record: Path) -> set[str]:
    try:
        return {str(out["md5"]) for out in read_yaml(record)["outs"]}
    except (ValueError, KeyError, TypeError):
        return {"of a damaged record"}


def remove(file: Path) -> None:
    """Remove a file of the cache, and the folders that are empty then."""
    file.unlink(missing_ok=True)
    for folder in file.parents:
        if folder == cache_folder(ROOT) or any(folder.iterdir()):
            return
        folder.rmdir()

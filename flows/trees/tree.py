"""Commits of the working tree, kept by refs, and worktrees at these commits.

A commit holds the user's present working tree: uncommitted changes and new files are included, and
only ignored files are left out. The commit is on no branch, and index, HEAD and branches of the
user stay as they are. A ref keeps the commit, and therefore the commit recorded in MLflow can
reproduce the bytes of a sweep's trial or of a pipeline run.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks.project.cache import cache_folder
from tasks.project.environment import ROOT

SWEEPS, RUNS = "refs/gptmill/sweeps", "refs/gptmill/runs"
"""Folders of the refs that keep the commits of trials and of pipeline runs."""
# hooks of the user's repository must not run in worktrees of our own
QUIET = ("-c", "core.hooksPath=/dev/null", "-c", "advice.detachedHead=false")
WHO = {
    f"GIT_{role}_{field}": value
    for role in ("AUTHOR", "COMMITTER")
    for field, value in (("NAME", "gptmill"), ("EMAIL", "gptmill@gptmill.invalid"))
}


SECRETS = ":(exclude,top,glob)**/.env*"
"""Files that usually hold secrets: no commit of ours has them."""
OWN = (
    *("data.dvc", "dvc.lock", "dvc.yaml", "params.yaml", "sources.toml"),
    *("configs", "flows", "sets", "src", "tasks"),
)
"""The project's own files and folders: of files unknown to git, no others are committed."""


def git(
    *words: str, cwd: Path = ROOT, extra: dict[str, str] | None = None, text: str | None = None
) -> str:
    """Run git and return its output.

    Raises ValueError with the last line of git's errors where the command fails.
    """
    result = subprocess.run(
        ["git", *QUIET, *words],
        cwd=cwd,
        env={**os.environ, **(extra or {})},
        input=text or "",
        capture_output=True,
        encoding="utf-8",
    )
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"`git {' '.join(words[:2])}` failed: {reason}")
    return result.stdout.strip()


def check_repository(who: str) -> None:
    """Raise ValueError where git is missing or has no commit for a worktree.

    `who` needs the worktree: `a sweep`.
    """
    if shutil.which("git") is None:
        raise ValueError(
            f"{who} needs git, but the command is not on this machine: install git, for a worktree"
        )
    try:
        top = git("rev-parse", "--show-toplevel")
        git("rev-parse", "--verify", "HEAD")
    except ValueError:
        raise ValueError(
            f"{who} needs a git repository with a first commit, for a worktree"
        ) from None
    if Path(top).resolve() != ROOT.resolve():
        raise ValueError(f"{who} needs params.yaml at the top of its repository, {top}")


def commit(files: Mapping[str, str], message: str, *, ref: str, start: str | None = None) -> str:
    """Commit the working tree, or a commit's tree, with other files; return the commit.

    `files` are texts by path that replace files of the tree. The ref `ref` keeps the commit.
    """
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        extra = {"GIT_INDEX_FILE": str(index), **WHO}
        if start is None:
            user_index = Path(git("rev-parse", "--path-format=absolute", "--git-path", "index"))
            if user_index.exists():
                shutil.copy2(user_index, index)  # the user's own index stays unchanged
            git("add", "--update", extra=extra)
            own = [name for name in OWN if (ROOT / name).exists()]
            git("add", "--all", "--", *own, SECRETS, extra=extra)
        else:
            git("read-tree", start, extra=extra)
        for path, text in files.items():
            blob = git("hash-object", "-w", "--stdin", text=text)
            git("update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", extra=extra)
        tree = git("write-tree", extra=extra)
        parent = f"{start}^" if start else "HEAD"
        commit_id = git("commit-tree", tree, "-p", parent, "-m", message, extra=extra)
    git("update-ref", ref, commit_id)
    return commit_id


@dataclass(frozen=True)
class Ref:
    """A ref of ours: its commit, and the time of the commit."""

    name: str
    commit: str
    time: int


def refs() -> Iterator[Ref]:
    """Yield the refs that keep commits of trials and of pipeline runs; none without git."""
    form = "--format=%(refname) %(objectname) %(committerdate:unix)"
    try:
        lines = git("for-each-ref", form, SWEEPS, RUNS).splitlines()
    except ValueError:
        return
    for line in lines:
        name, commit_id, seconds = line.split()
        yield Ref(name, commit_id, int(seconds))


def remove_ref(name: str) -> None:
    """Remove a ref; git frees the commit some weeks later."""
    git("update-ref", "-d", name)


def prepare(folder: Path, commit_id: str) -> None:
    """Prepare a worktree of a commit at `folder`.

    The files of unfinished work in `folder` are kept.
    """
    if _is_worktree(folder):
        _unlock(folder)
        git("checkout", "--quiet", "--force", "--detach", commit_id, cwd=folder)
    else:
        remove(folder)
        git("worktree", "add", "--quiet", "--force", "--detach", str(folder), commit_id)
    _configure(folder)


def _configure(folder: Path) -> None:
    """Give a worktree the project's DVC cache, and the remotes that git does not know."""
    from dvc.config import Config

    own = Config(str(ROOT / ".dvc")).load_one("local")
    with Config(str(folder / ".dvc"), validate=False).edit("local") as config:
        config.clear()
        config.update({**own, "cache": {**own.get("cache", {}), "dir": str(cache_folder(ROOT))}})


def remove(folder: Path) -> None:
    """Remove a worktree in any state, with its git entry."""
    if _is_worktree(folder):
        git("worktree", "remove", "--force", "--force", str(folder))
    shutil.rmtree(folder, ignore_errors=True)
    git("worktree", "prune")


def _is_worktree(folder: Path) -> bool:
    """Return whether git accepts `folder` as a worktree.

    A half-created worktree may have no commit yet, and is not accepted.
    """
    if not (folder / ".git").exists():
        return False
    try:
        git("rev-parse", "--verify", "HEAD", cwd=folder)
    except ValueError:
        return False
    return True


def _unlock(folder: Path) -> None:
    """Remove the index lock of a killed git process.

    No second git process works in a worktree of our own.
    """
    path = git("rev-parse", "--path-format=absolute", "--git-path", "index.lock", cwd=folder)
    Path(path).unlink(missing_ok=True)

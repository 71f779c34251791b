"""A git worktree per trial.

The worktree is at a commit with the trial's params. The commit holds the user's present working
tree: uncommitted changes and new files are included, and only ignored files are left out. A ref
keeps the commit of each trial, and therefore the commit recorded in MLflow can reproduce the
trial's bytes.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tasks.project.cache import cache_folder
from tasks.project.environment import ROOT

REFS = "refs/gptmill/sweeps"
# hooks of the user's repository must not run in the sweep's own worktrees
QUIET = ("-c", "core.hooksPath=/dev/null", "-c", "advice.detachedHead=false")
WHO = {
    f"GIT_{role}_{field}": value
    for role in ("AUTHOR", "COMMITTER")
    for field, value in (("NAME", "gptmill sweep"), ("EMAIL", "sweep@gptmill.invalid"))
}


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


def check_repository() -> None:
    """Raise ValueError where git is missing or has no commit for a worktree."""
    if shutil.which("git") is None:
        raise ValueError(
            "a sweep needs git, but the command is not on this machine: install git, for a "
            "worktree of each trial"
        )
    try:
        top = git("rev-parse", "--show-toplevel")
        git("rev-parse", "--verify", "HEAD")
    except ValueError:
        raise ValueError(
            "a sweep needs a git repository with a first commit: each trial is a worktree"
        ) from None
    if Path(top).resolve() != ROOT.resolve():
        raise ValueError(f"a sweep needs params.yaml at the top of its repository, {top}")


def commit(params: str, message: str, *, ref: str) -> str:
    """Commit the working tree with new params; return the commit.

    The commit is on no branch: the ref `ref` keeps the commit.
    """
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        user_index = Path(git("rev-parse", "--path-format=absolute", "--git-path", "index"))
        if user_index.exists():
            shutil.copy2(user_index, index)  # the user's own index stays unchanged
        extra = {"GIT_INDEX_FILE": str(index), **WHO}
        git("add", "--all", extra=extra)
        blob = git("hash-object", "-w", "--stdin", text=params)
        git("update-index", "--add", "--cacheinfo", f"100644,{blob},params.yaml", extra=extra)
        tree = git("write-tree", extra=extra)
        commit_id = git("commit-tree", tree, "-p", "HEAD", "-m", message, extra=extra)
    git("update-ref", f"{REFS}/{ref}", commit_id)
    return commit_id


def prepare(folder: Path, commit_id: str) -> None:
    """Prepare a worktree of a commit at `folder`.

    The files of an unfinished trial in `folder` are kept.
    """
    if _is_worktree(folder):
        _unlock(folder)
        git("checkout", "--quiet", "--force", "--detach", commit_id, cwd=folder)
    else:
        remove(folder)
        git("worktree", "add", "--quiet", "--force", "--detach", str(folder), commit_id)
    config = f"[cache]\n    dir = {cache_folder(ROOT)}\n"
    (folder / ".dvc" / "config.local").write_text(config, encoding="utf-8")


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

    No second git process works in the worktree of a trial.
    """
    path = git("rev-parse", "--path-format=absolute", "--git-path", "index.lock", cwd=folder)
    Path(path).unlink(missing_ok=True)

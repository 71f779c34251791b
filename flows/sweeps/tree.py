"""A git worktree a trial: a commit of the tree as it lies here, with the trial's params.

What is not committed travels too, new files included, only ignored ones stay. Each trial
has a commit of its own, kept by a ref, so that the commit that MLflow notes makes the
trial's bytes again.
"""

import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from flows.dvc.pins import dvc
from tasks.project.environment import ROOT

REFS = "refs/gptmill/sweeps"
# no hook of the user's repository runs for a tree that is ours
QUIET = ("-c", "core.hooksPath=/dev/null", "-c", "advice.detachedHead=false")
WHO = {
    f"GIT_{role}_{field}": value
    for role in ("AUTHOR", "COMMITTER")
    for field, value in (("NAME", "gptmill sweep"), ("EMAIL", "sweep@gptmill.invalid"))
}


def git(
    *words: str, cwd: Path = ROOT, extra: dict[str, str] | None = None, text: str | None = None
) -> str:
    """Run git and return what it prints; raise ValueError with its last line when it fails."""
    done = subprocess.run(
        ["git", *QUIET, *words],
        cwd=cwd,
        env={**os.environ, **(extra or {})},
        input=text or "",
        capture_output=True,
        encoding="utf-8",
    )
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"`git {' '.join(words[:2])}` failed: {why}")
    return done.stdout.strip()


def check_repository() -> None:
    """Raise ValueError where there is no commit that a worktree could start from."""
    try:
        top = git("rev-parse", "--show-toplevel")
        git("rev-parse", "--verify", "HEAD")
    except ValueError:
        raise ValueError(
            "a sweep needs git, and a first commit: each trial is a worktree"
        ) from None
    if Path(top).resolve() != ROOT.resolve():
        raise ValueError(f"a sweep needs params.yaml at the top of its repository, which is {top}")


def commit(params: str, message: str, *, ref: str) -> str:
    """Commit the tree as it lies here with other params, off every branch; return the commit."""
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        own = Path(git("rev-parse", "--path-format=absolute", "--git-path", "index"))
        if own.exists():
            shutil.copy2(own, index)  # the user's own index stays as it is
        extra = {"GIT_INDEX_FILE": str(index), **WHO}
        git("add", "--all", extra=extra)
        blob = git("hash-object", "-w", "--stdin", text=params)
        git("update-index", "--add", "--cacheinfo", f"100644,{blob},params.yaml", extra=extra)
        tree = git("write-tree", extra=extra)
        made = git("commit-tree", tree, "-p", "HEAD", "-m", message, extra=extra)
    git("update-ref", f"{REFS}/{ref}", made)
    return made


def prepare(folder: Path, made: str) -> None:
    """Have a worktree of a commit at `folder`; what an unfinished trial kept there stays."""
    if _is_worktree(folder):
        _unlock(folder)
        git("checkout", "--quiet", "--force", "--detach", made, cwd=folder)
    else:
        remove(folder)
        git("worktree", "add", "--quiet", "--force", "--detach", str(folder), made)
    config = f"[cache]\n    dir = {_cache()}\n"
    (folder / ".dvc" / "config.local").write_text(config, encoding="utf-8")


def remove(folder: Path) -> None:
    """Remove a worktree, in whatever state it is; git forgets it."""
    if _is_worktree(folder):
        git("worktree", "remove", "--force", "--force", str(folder))
    shutil.rmtree(folder, ignore_errors=True)
    git("worktree", "prune")


def _is_worktree(folder: Path) -> bool:
    """Return whether git takes `folder` for a worktree; a half-made one may have no commit yet."""
    if not (folder / ".git").exists():
        return False
    try:
        git("rev-parse", "--verify", "HEAD", cwd=folder)
    except ValueError:
        return False
    return True


def _unlock(folder: Path) -> None:
    """Remove the lock of a git that was killed here; no other one works in this worktree."""
    path = git("rev-parse", "--path-format=absolute", "--git-path", "index.lock", cwd=folder)
    Path(path).unlink(missing_ok=True)


@cache
def _cache() -> str:
    return dvc(ROOT, "cache", "dir").strip()

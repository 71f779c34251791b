"""What a killed DVC leaves half written stops the next one, and does not any more."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.dvc.repair import is_record, repair
from tests.support.project import Project, commit

GRAPH = """
stages:
  first: {cmd: echo first >> runs && cp given one, deps: [given], outs: [one]}
  second: {cmd: echo second >> runs && cp one two, deps: [one], outs: [two]}
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Return a project of two stages that have run, each line of `runs` being one of them."""
    project = Project(tmp_path)
    for words in (("git", "init", "-q"), ("dvc", "init", "-q")):
        assert project.run(*words).returncode == 0
    (tmp_path / "dvc.yaml").write_text(GRAPH)
    (tmp_path / "given").write_text("1\n")
    (tmp_path / ".gitignore").write_text("/runs\n/one\n/two\n")
    assert repro(project) == ""
    commit(project, "two stages")
    return project


def repro(project: Project) -> str:
    done = project.run("dvc", "repro")
    return "" if done.returncode == 0 else done.stderr


def runs(project: Project) -> list[str]:
    return (project.root / "runs").read_text().split()


def empty_lock(root: Path) -> None:
    (root / ".dvc/tmp/rwlock").write_text("")


def half_a_lock(root: Path) -> None:
    (root / ".dvc/tmp/rwlock").write_text('{"write": {"/one": {"pid')


def no_record(root: Path) -> None:
    path = root / "dvc.lock"
    text = path.read_text()
    path.write_text(text[: text.index("  second:") + 9])


def no_path(root: Path) -> None:
    path = root / "dvc.lock"
    text = path.read_text()
    path.write_text(text[: text.rindex("path:") + 5])


@pytest.mark.parametrize("leave", [empty_lock, half_a_lock, no_record, no_path])
def test_a_half_record_is_put_right(
    project: Project, leave: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
) -> None:
    leave(project.root)
    assert repro(project)  # without us it fails
    repair(project.root)
    message = "DVC was killed while writing this record; repaired"
    assert capfd.readouterr().err.count(message) == 1
    assert repro(project) == ""
    assert runs(project) == ["first", "second"]  # nothing ran again
    repair(project.root)
    assert capfd.readouterr().err == ""


def test_an_empty_folder_in_the_run_cache_is_removed(project: Project) -> None:
    for path in (project.root / ".dvc/cache/runs").glob("*/*/*"):
        path.unlink()  # as it is before the record of a commit is written
    (project.root / "dvc.lock").unlink()
    assert "join() argument" in repro(project)
    repair(project.root)
    assert repro(project) == ""


def test_a_wrong_hash_is_none(project: Project) -> None:
    path = project.root / "dvc.lock"
    whole = path.read_text()
    (project.root / "given").write_text("2\n")
    assert repro(project) == ""
    ahead = path.read_text()
    path.write_text(ahead[: ahead.rindex("md5:") + 20])
    repair(project.root)
    assert path.read_text() == whole  # the last commit's
    assert repro(project) == ""
    assert path.read_text() == ahead
    assert runs(project) == ["first", "second"] * 2  # the run cache had this one, too


def test_a_conflict_of_a_merge_is_the_user_s(project: Project) -> None:
    path = project.root / "dvc.lock"
    conflict = f"<<<<<<< HEAD\n{path.read_text()}=======\n{path.read_text()}>>>>>>> other\n"
    path.write_text(conflict)
    repair(project.root)
    assert path.read_text() == conflict


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_nothing_is_discarded_where_git_refuses(project: Project) -> None:
    """Git refuses a folder that another user owns."""
    path = project.root / "dvc.lock"
    path.write_text("schema: '2.0'\nstages:\n  a:\n    outs:\n    - path", encoding="utf-8")
    content = path.read_bytes()
    os.chown(project.root / ".git", 1234, 1234)
    try:
        with pytest.raises(ValueError, match=r"dvc\.lock is truncated.*dubious ownership"):
            repair(project.root)
    finally:
        os.chown(project.root / ".git", os.getuid(), os.getgid())
    assert path.read_bytes() == content


def test_without_a_commit_a_record_is_begun_anew(project: Project) -> None:
    (project.root / "data.dvc").write_text("outs:\n- md5: 12")
    repair(project.root)
    assert not (project.root / "data.dvc").exists()
    assert (project.root / ".state/data.dvc.cut").read_text() == "outs:\n- md5: 12"


def test_every_cut_of_a_record_is_one_that_dvc_reads_or_none(project: Project) -> None:
    """DVC's own reader is asked: what passes here it must not refuse."""
    content = (project.root / "dvc.lock").read_bytes()
    assert is_record(content)
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from ruamel.yaml import YAML

    passed = [content[:end] for end in range(len(content)) if is_record(content[:end])]
    assert passed
    for cut in passed:
        COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(cut))


def test_a_living_dvc_is_left_alone(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setattr("flows.dvc.repair.LOCK_TIMEOUT_S", 0.1)
    empty_lock(project.root)
    with (project.root / ".dvc/tmp/rwlock.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        repair(project.root)
        assert (project.root / ".dvc/tmp/rwlock").exists()


def test_a_project_without_git_runs(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(project.root / ".git")
    assert "not a git repository" in repro(project)
    repair(project.root)
    assert "this folder is no git repository" in capsys.readouterr().err
    (project.root / "given").write_text("2\n")
    assert repro(project) == ""
    assert runs(project) == ["first", "second", "first", "second"]
    repair(project.root)
    assert capsys.readouterr().err == ""

"""Damaged and missing files of artifacts/ and of DVC's cache, with real DVC."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.project import Project, copy_tree

GRAPH = """
stages:
  first: {cmd: echo first >> runs && cp given one, deps: [given], outs: [one]}
  second:
    cmd: echo second >> runs && mkdir -p two && cp one two/a && echo b$(cat one) > two/b
    deps: [one]
    outs: [two]
  large:
    cmd: echo large >> runs && (cat one && head -c 2000000 /dev/zero) > three
    deps: [one]
    outs: [three]
"""
FINISHED = ["first", "second", "large"]
REPRO = """
import json, sys
from flows.dvc import repro
lines = []
outcome = repro.repro(sys.argv[1], on_line=lines.append)
print(json.dumps({"state": outcome.state, "message": outcome.message, "lines": lines}))
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project of two stages that have run, each line of `runs` being one of them."""
    project = copy_tree(tmp_path_factory.mktemp("finished"))
    (project.root / "dvc.yaml").write_text(GRAPH)
    (project.root / "given").write_text("1\n")
    for stage in ("first", "second", "large"):
        assert repro(project, stage)["message"] == ""
    assert runs(project) == FINISHED
    return project.root


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Project:
    """Return a copy of the finished project."""
    # with cp, since copies of links must be links of each other again
    subprocess.run(["cp", "-a", finished, tmp_path / "project"], check=True)
    return Project(tmp_path / "project")


def repro(project: Project, stage: str) -> dict[str, Any]:
    """Run `flows.dvc.repro` in the project, and return the outcome."""
    done = project.python("-c", REPRO, stage, extra={"PYTHONPATH": "src:."})
    assert done.returncode == 0, done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return outcome


def new_runs(project: Project) -> list[str]:
    """Return the stages that ran since the project was finished."""
    return runs(project)[len(FINISHED) :]


def runs(project: Project) -> list[str]:
    return (project.root / "runs").read_text().split()


def cached(project: Project, content: str) -> Path:
    digest = hashlib.md5(content.encode()).hexdigest()
    return project.root / ".dvc/cache/files/md5" / digest[:2] / digest[2:]


def flip(path: Path) -> None:
    """Change a byte of a file; the mode stays."""
    mode = path.stat().st_mode
    path.chmod(0o644)
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    path.chmod(mode)


def test_nothing_is_said_of_intact_files(project: Project) -> None:
    for stage in ("first", "second"):
        assert repro(project, stage) == {"state": "unchanged", "message": "", "lines": []}
    shutil.rmtree(project.root / "two")
    assert repro(project, "second")["lines"] == []
    assert (project.root / "two/a").read_text() == "1\n"
    assert new_runs(project) == []


@pytest.mark.parametrize("also_the_output", [False, True])
def test_a_damaged_cache_is_named_and_made_again(
    project: Project, *, also_the_output: bool
) -> None:
    damaged = cached(project, "b1\n")
    flip(damaged)
    if also_the_output:
        shutil.rmtree(project.root / "two")
    outcome = repro(project, "second")
    assert any(str(damaged) in line and "damaged" in line for line in outcome["lines"])
    assert outcome["message"] == ""
    assert (project.root / "two/b").read_text() == damaged.read_text() == "b1\n"
    assert repro(project, "second") == {"state": "unchanged", "message": "", "lines": []}


@pytest.mark.parametrize(("stage", "name"), [("first", "one"), ("large", "three")])
def test_an_edit_in_place_of_an_output_is_noticed_and_the_output_made_again(
    project: Project, stage: str, name: str
) -> None:
    output = project.root / name
    content = output.read_text()
    file = cached(project, content)
    assert output.samefile(file), "an output is a link to the cached file"
    assert output.stat().st_mode & 0o777 == 0o444
    flip(output)
    outcome = repro(project, stage)
    assert any(str(file) in line and "damaged" in line for line in outcome["lines"])
    assert outcome["message"] == ""
    assert output.read_text() == content
    assert output.samefile(file)
    assert new_runs(project) == [stage]


def test_damage_of_an_earlier_run_s_output_is_noticed_when_it_comes_back(project: Project) -> None:
    (project.root / "given").write_text("2\n")
    assert repro(project, "first")["message"] == ""
    damaged = cached(project, "1\n")
    flip(damaged)
    (project.root / "given").write_text("1\n")
    outcome = repro(project, "first")
    assert any(str(damaged) in line and "damaged" in line for line in outcome["lines"])
    assert outcome["message"] == ""
    assert (project.root / "one").read_text() == damaged.read_text() == "1\n"
    assert new_runs(project) == ["first", "first"]


def test_a_damaged_listing_is_made_again(project: Project) -> None:
    (listing,) = project.root.glob(".dvc/cache/files/md5/*/*.dir")
    flip(listing)
    outcome = repro(project, "second")
    assert any(str(listing) in line for line in outcome["lines"])
    assert outcome["message"] == ""
    assert json.loads(listing.read_bytes())
    assert new_runs(project) == []
    assert repro(project, "second")["lines"] == []


def test_a_clone_without_outputs_runs_them_and_nothing_is_said(project: Project) -> None:
    shutil.rmtree(project.root / ".dvc/cache")
    shutil.rmtree(project.root / "two")
    lines = repro(project, "second")["lines"]
    assert not [line for line in lines if "cache lacks" in line or "damaged" in line]
    assert new_runs(project) == ["second"]


def test_a_lost_list_of_files_is_stored_without_a_run(project: Project) -> None:
    (listing,) = project.root.glob(".dvc/cache/files/md5/*/*.dir")
    listing.unlink()
    assert repro(project, "second")["message"] == ""
    assert json.loads(listing.read_bytes())
    assert new_runs(project) == []


def test_what_the_cache_lacks_is_stored_without_a_run(project: Project) -> None:
    for content in ("1\n", "b1\n"):
        cached(project, content).unlink()
    outcome = repro(project, "second")
    assert "lacks 2 files" in outcome["lines"][0]
    assert outcome["message"] == ""
    assert cached(project, "b1\n").read_text() == "b1\n"
    assert new_runs(project) == []


def test_a_cache_that_cannot_be_filled_fails_the_stage_and_loses_nothing(project: Project) -> None:
    folder = cached(project, "b2\n").parent
    folder.symlink_to("/proc")  # as on a full disk: no file can be stored
    (project.root / "given").write_text("2\n")
    assert repro(project, "first")["message"] == ""
    outcome = repro(project, "second")
    assert outcome["state"] == "failed", outcome
    assert "could not store 1 files in its cache" in outcome["message"]
    assert "is the disk full?" in outcome["message"]
    folder.unlink()
    assert repro(project, "second")["message"] == ""
    assert cached(project, "b2\n").read_text() == (project.root / "two/b").read_text() == "b2\n"
    assert new_runs(project) == ["first", "second"]

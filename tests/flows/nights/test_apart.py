"""Runs of the flow with params of their own, beside the user's tree, on a real Prefect server."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.support.project import FLOW, HEAD, Project, one_stage_project, prefect_of, run_flow

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return one_stage_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def server(project: Project) -> Iterator[dict[str, str]]:
    with prefect_of(project) as variables:
        yield variables


def files(project: Project) -> dict[str, bytes]:
    """Return the user's files that a run apart leaves alone."""
    names = ("params.yaml", "dvc.lock", "data.dvc", ".git/index", ".git/HEAD", "tasks/sample.py")
    found = {name: (project.root / name).read_bytes() for name in names}
    written = project.root / "artifacts" / "sample" / "written.txt"
    return {**found, "written.txt": written.read_bytes()}


def git(project: Project, *words: str) -> str:
    done = project.run("git", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def last(project: Project, name: str) -> dict[str, str]:
    """Return the tags of the newest run with a name."""
    runs = [run for run in project.runs() if run["name"].startswith(name)]
    return {**project.tags(runs[-1]["id"]), "id": runs[-1]["id"]}


def locked(text: str) -> str:
    """Return the hash of the stage's output in a dvc.lock."""
    return str(YAML(typ="safe").load(text)["stages"]["sample"]["outs"][0]["md5"])


def test_a_run_with_overrides_leaves_the_user_s_tree_alone(
    project: Project, server: dict[str, str]
) -> None:
    with (project.root / "tasks" / "sample.py").open("a", encoding="utf-8") as file:
        file.write("# not committed\n")
    assert run_flow(project, server) == ("Completed", "ran sample")
    assert run_flow(project, server)[0:2] == (
        "Completed",
        "everything was up to date: nothing ran",
    )
    before = files(project)
    assert before["written.txt"] == b"One.\n"
    (project.root / "books" / "two.txt").write_text("Two.\n", encoding="utf-8")
    asked = {"overrides": {"sample.times": 3}}
    assert run_flow(project, server, **asked) == ("Completed", "ran sample")
    assert files(project) == before
    assert git(project, "worktree", "list").count("\n") == 1
    parent, stage = last(project, "pipeline"), last(project, "sample")
    assert parent["override.sample.times"] == "3"
    assert stage["mlflow.parentRunId"] == parent["id"]
    commit = parent["gptmill.commit"]
    assert git(project, "rev-parse", parent["gptmill.ref"]).strip() == commit
    assert "times: 3" in git(project, "show", f"{commit}:params.yaml")
    assert "# not committed" in git(project, "show", f"{commit}:tasks/sample.py")
    lock = git(project, "show", f"{commit}:dvc.lock")
    assert stage["dvc.out.artifacts/sample"] == locked(lock)

    # without `data` the run is of the data that data.dvc pins: a file, three times
    assert run_flow(project, server, **asked, data=False) == ("Completed", "ran sample")
    outcome = run_flow(project, server, **asked, data=False)
    assert outcome == ("Completed", "everything was up to date: nothing ran")
    assert run_flow(project, server, **asked, force=True) == ("Completed", "ran sample")


def test_two_runs_at_once_end_in_the_hashes_that_each_has_alone(
    project: Project, server: dict[str, str]
) -> None:
    words = [sys.executable, "-c", HEAD + FLOW]
    started = [
        subprocess.Popen(
            [*words, json.dumps({"overrides": {"sample.times": times}})],
            cwd=project.root,
            env={**project.environment(), **server},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for times in (4, 5)
    ]
    for process in started:
        out = process.communicate(timeout=200)[0]
        assert '["Completed", "ran sample"]' in out, out
    runs = [project.tags(run["id"]) for run in project.runs() if run["name"].startswith("pipe")]
    commits = {run["override.sample.times"]: run["gptmill.commit"] for run in runs[-2:]}
    for times in (4, 5):
        assert run_flow(project, server, overrides={"sample.times": times})[0] == "Completed"
        alone = last(project, "pipeline")["gptmill.commit"]
        both = [git(project, "show", f"{name}:dvc.lock") for name in (commits[str(times)], alone)]
        assert both[0] == both[1]


def test_a_value_out_of_bounds_is_refused_before_any_stage(
    project: Project, server: dict[str, str]
) -> None:
    before, n_runs = files(project), len(project.runs())
    name, message = run_flow(project, server, overrides={"sample.times": 101})
    assert name == "Failed"
    assert message == (
        "overrides: params.yaml: sample.times: input should be less than or equal to 100 "
        "(given: 101)"
    )
    assert files(project) == before
    assert len(project.runs()) == n_runs


def test_a_project_without_git_runs_with_a_note(tmp_path: Path) -> None:
    project = one_stage_project(tmp_path)
    git(project, "rev-parse", "HEAD")
    (project.root / ".git").rename(project.root / "no.git")
    done = project.python("-m", "flows", "data")
    assert done.returncode == 0, done.stderr
    done = project.python("-m", "flows", "pipeline")
    assert done.returncode == 0, done.stderr
    assert "the run is recorded without a git ref: " in done.stderr

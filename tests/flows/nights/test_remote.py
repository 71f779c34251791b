"""A DVC remote between two machines: a folder, and an S3-compatible store on this machine."""

import json
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.flows.test_ui import free_port
from tests.support.project import (
    FLOW,
    HEAD,
    Project,
    commit,
    flow_state,
    one_stage_project,
    prefect_of,
    run_flow,
    tiny_project,
)

pytestmark = pytest.mark.slow
KEYS = {"AWS_ACCESS_KEY_ID": "mill", "AWS_SECRET_ACCESS_KEY": "planted-key"}
S3 = pytest.mark.skipif(
    not (find_spec("moto") and find_spec("dvc_s3")), reason="moto and dvc-s3 are not installed"
)


@contextmanager
def folder(place: Path) -> Iterator[list[str]]:
    """Yield the DVC commands that make a folder the remote."""
    yield [f"remote add --local --default backup {place / 'remote'}"]


@contextmanager
def store(place: Path) -> Iterator[list[str]]:
    """Serve a bucket by moto; yield the DVC commands that make the bucket the remote."""
    site = f"http://127.0.0.1:{(port := free_port())}"
    words = [sys.executable, "-m", "moto.server", "-p", str(port)]
    log = (place / "moto.log").open("w")
    with log, subprocess.Popen(words, stdout=log, stderr=log) as server:
        while server.poll() is None:
            try:
                request = urllib.request.Request(f"{site}/mill", method="PUT")
                urllib.request.urlopen(request, timeout=30).close()
                break
            except urllib.error.URLError:
                continue
        yield [
            "remote add --local --default backup s3://mill/gptmill",
            f"remote modify --local backup endpointurl {site}",
        ]
        server.kill()


def ran(project: Project, *words: str) -> str:
    done = project.run(*words, extra=KEYS, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def configure(project: Project, commands: list[str]) -> None:
    (project.root / ".dvc" / "config.local").unlink(missing_ok=True)
    for words in commands:
        ran(project, sys.executable, "-m", "dvc", *words.split())


def clone(project: Project, root: Path, revision: str, commands: list[str]) -> Project:
    copy = Project(root)
    ran(project, "git", "clone", "-q", str(project.root), str(root))
    ran(copy, "git", "checkout", "-q", revision)
    configure(copy, commands)
    return copy


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return tiny_project(tmp_path_factory.mktemp("project"))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("remote", [folder, pytest.param(store, marks=S3)])
def test_what_a_night_pushed_makes_a_second_clone_run_nothing(
    project: Project, tmp_path: Path, remote: object
) -> None:
    assert callable(remote)
    with remote(tmp_path) as commands, prefect_of(project) as server:
        configure(project, commands)
        first = not (project.root / "dvc.lock").exists()
        asked = json.dumps({"push": True, "data": False})
        words = ("-c", HEAD + FLOW, asked)
        done = project.python(*words, extra={**server, **KEYS}, timeout=1500)
        state, message = flow_state(done.returncode, done.stdout, done.stderr)
        assert (state, message.startswith("ran tokenize, sample")) == ("Completed", first), message
        lock = (project.root / "dvc.lock").read_bytes()
        if first:
            commit(project, "the record of the run")

        # the commit with the record of the run, then the commit before, with no record of any stage
        for name, revision in (("recorded", "HEAD"), ("unrecorded", "HEAD~")):
            copy = clone(project, tmp_path / name, revision, commands)
            assert (copy.root / "dvc.lock").exists() == (name == "recorded")
            said = ran(copy, sys.executable, "-m", "flows", "pipeline")
            assert not re.search(r"^\w+ ran in", said, re.MULTILINE), said
            assert (copy.root / "dvc.lock").read_bytes() == lock


def test_a_remote_that_is_away_stops_no_run(tmp_path: Path) -> None:
    project = one_stage_project(tmp_path)
    ran(project, sys.executable, "-m", "flows", "data")
    # DVC knows the first kind only with an extra, and the second has no server
    for address in ("ssh://nowhere.invalid/mill", "http://127.0.0.1:9/mill"):
        configure(project, [f"remote add --local --default backup {address}"])
        (project.root / "dvc.lock").unlink(missing_ok=True)
        shutil.rmtree(project.root / ".dvc" / "cache" / "runs", ignore_errors=True)
        said = ran(project, sys.executable, "-m", "flows", "pipeline")
        assert re.search("^sample ran in", said, re.MULTILINE), said
        told = "DVC failed with the remote backup" in project.log()
        assert told == address.startswith("ssh")


def test_a_run_with_overrides_sends_its_own_outputs(tmp_path: Path) -> None:
    project = one_stage_project(tmp_path / "project")
    with folder(tmp_path) as commands, prefect_of(project) as server:
        configure(project, commands)
        (tmp_path / "remote").write_text("no folder")
        asked = {"overrides": {"sample.times": 3}, "push": True}
        state, message = run_flow(project, server, **asked)
        assert state == "Failed"
        assert message.startswith("`dvc push --run-cache` failed: ")
        assert message.endswith("mend the remote, and the next run with `push` sends them")
        (tmp_path / "remote").unlink()
        assert run_flow(project, server, **asked)[0] == "Completed"
    (parent,) = [run["id"] for run in project.runs() if run["name"].startswith("pipe")][1:]
    tags = project.tags(parent)
    other = Project(tmp_path / "other")
    ran(project, "git", "clone", "-q", str(project.root), str(other.root))
    ran(other, "git", "fetch", "-q", "origin", tags["gptmill.ref"])
    ran(other, "git", "checkout", "-q", "FETCH_HEAD")
    configure(other, commands)
    shutil.rmtree(project.root / ".dvc" / "cache")
    ran(other, sys.executable, "-m", "dvc", "pull")
    assert (other.root / "artifacts" / "sample" / "written.txt").read_text() == "One.\n" * 3
    assert (other.root / "data" / "text" / "books").is_dir()

"""The servers of deploy/compose.yaml without Docker: PostgreSQL, logins, an object store."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tasks.frame.recorded import MODELS
from tasks.project.environment import ROOT
from tasks.project.graph import read_yaml, stages
from tests.flows.nights.test_remote import configure
from tests.flows.test_ui import free_port
from tests.promises.test_pipeline import lock
from tests.promises.test_secrets import PLANTED, ask, leaks, refusal
from tests.support.project import FLOW, HEAD, Project, flow_state, one_stage_project, tiny_project

PACKAGES = ("dvc_s3", "boto3", "flask_wtf", "moto", "psycopg2")
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not POSTGRES or not all(map(find_spec, PACKAGES)),
        reason=f"PostgreSQL and the packages {', '.join(PACKAGES)} are not installed",
    ),
]
VALUES = {
    "POSTGRES_PASSWORD": f"{PLANTED}-1",
    "PREFECT_API_AUTH_STRING": f"mill:{PLANTED}-2",
    "MLFLOW_TRACKING_PASSWORD": f"{PLANTED}-3",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": f"{PLANTED}-4",
    "AWS_ACCESS_KEY_ID": "mill",
    "AWS_SECRET_ACCESS_KEY": f"{PLANTED}-5",
}
"""The content of deploy/.env."""


def as_postgres(*words: object) -> None:
    """Run a program of PostgreSQL, which refuses to be root."""
    program, *rest = map(str, words)
    before = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    command = [*before, str(POSTGRES[-1].with_name(program)), *rest]
    subprocess.run(command, check=True, capture_output=True, cwd="/")


@contextmanager
def postgres(databases: list[str]) -> Iterator[str]:
    """Run PostgreSQL on a free port; yield the address."""
    folder, port = Path(tempfile.mkdtemp(prefix="gptmill-postgres-")), free_port()
    data, password = folder / "data", folder / "password"
    try:
        password.write_text(VALUES["POSTGRES_PASSWORD"])
        if os.getuid() == 0:
            for path in (folder, password):
                shutil.chown(path, "postgres")
        as_postgres("initdb", "-U", "gptmill", "-A", "scram-sha-256", f"--pwfile={password}", data)
        options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder}"
        as_postgres("pg_ctl", "start", "-w", "-D", data, "-l", folder / "log", "-o", options)
        login = f"postgresql://gptmill:{VALUES['POSTGRES_PASSWORD']}@127.0.0.1:{port}"
        for name in databases:
            as_postgres("psql", f"{login}/postgres", "-c", f"create database {name}")
        yield f"127.0.0.1:{port}"
    finally:
        if data.exists():
            as_postgres("pg_ctl", "stop", "-m", "fast", "-D", data)
        shutil.rmtree(folder)


def filled(text: str, places: dict[str, str]) -> str:
    """Put variables and places of this machine into a text of compose.yaml."""
    text = re.sub(
        r"\$\{(\w+)(?::\?[^}]*|:-([^}]*))?\}", lambda m: VALUES.get(m[1], m[2] or ""), text
    )
    for name, place in places.items():
        text = text.replace(name, place)
    return text


@contextmanager
def started(words: list[str], variables: dict[str, str], folder: Path, url: str) -> Iterator[None]:
    """Run a Python module until the block ends; the block begins when `url` answers."""
    with (folder / f"{words[0]}.log").open("w") as log, ExitStack() as stack:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=folder,
            env={**os.environ, "PREFECT_HOME": str(folder / "prefect"), **variables},
            stdout=log,
            stderr=log,
        )
        stack.callback(process.wait, 60)
        stack.callback(process.terminate)
        deadline = time.monotonic() + 400
        while True:
            try:
                urllib.request.urlopen(url, timeout=10).close()
                break
            except OSError:
                text = (folder / f"{words[0]}.log").read_text()
                assert process.poll() is None, text
                assert time.monotonic() < deadline, text
                time.sleep(0.5)
        yield


@dataclass(frozen=True)
class Servers:
    """Addresses of the servers, and a user's variables."""

    prefect: str
    mlflow: str
    s3: str

    @property
    def user(self) -> dict[str, str]:
        """Return the variables of a user's machine, with the logins."""
        return {
            "PREFECT_API_URL": f"http://{self.prefect}/api",
            "MLFLOW_TRACKING_URI": f"http://{self.mlflow}",
            "MLFLOW_TRACKING_USERNAME": "admin",
            **{name: VALUES[name] for name in VALUES if not name.startswith("POSTGRES")},
        }

    def of_prefect(self, path: str, **content: Any) -> Any:
        """Ask Prefect's API with the login."""
        return ask(f"http://{self.prefect}/api/{path}", content, VALUES["PREFECT_API_AUTH_STRING"])

    def of_mlflow(self, path: str, **content: Any) -> Any:
        """Ask MLflow's API with the login, by GET without content."""
        login = f"admin:{VALUES['MLFLOW_TRACKING_PASSWORD']}"
        return ask(f"http://{self.mlflow}/api/2.0/mlflow/{path}", content or None, login)

    def objects(self, bucket: str, prefix: str) -> str:
        """Return the store's listing of the objects below a prefix."""
        with urllib.request.urlopen(f"http://{self.s3}/{bucket}?prefix={prefix}") as listing:
            return str(listing.read().decode())

    def push(self, project: Project, **asked: object) -> subprocess.CompletedProcess[str]:
        """Run the pipeline as a deployment does, and push to the object store."""
        remote = ["remote add --local --default backup s3://dvc/gptmill"]
        configure(project, [*remote, f"remote modify --local backup endpointurl http://{self.s3}"])
        words = ("-c", HEAD + FLOW, json.dumps({"push": True, **asked}))
        return project.python(*words, extra=self.user, timeout=1500)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    """Run the servers of compose.yaml."""
    folder = tmp_path / "servers"
    folder.mkdir()
    compose = read_yaml(ROOT / "deploy" / "compose.yaml")
    databases = re.findall(r"CREATE DATABASE (\w+)", compose["configs"]["databases"]["content"])
    prefect, mlflow, s3 = (f"127.0.0.1:{free_port()}" for _ in range(3))
    with ExitStack() as stack:
        places = {
            "postgres:5432": stack.enter_context(postgres(["prefect", *databases])),
            "http://store:7070": f"http://{s3}",
            "0.0.0.0": "127.0.0.1",
            "/etc/mlflow/auth.ini": str(folder / "auth.ini"),
            "4200": prefect.rpartition(":")[2],
        }
        auth = filled(compose["configs"]["auth"]["content"], places)
        (folder / "auth.ini").write_text(auth)
        words = ["moto.server", "-p", s3.rpartition(":")[2]]
        stack.enter_context(started(words, {}, folder, f"http://{s3}/moto-api/"))
        for bucket in ("dvc", "mlflow"):
            request = urllib.request.Request(f"http://{s3}/{bucket}", method="PUT")
            urllib.request.urlopen(request, timeout=60).close()
        for name, site, health in (
            ("prefect", prefect, "/api/health"),
            ("mlflow", mlflow, "/health"),
        ):
            service = compose["services"][name]
            command = [filled(word, places) for word in service["command"]]
            command += [f"--port={mlflow.rpartition(':')[2]}"] if name == "mlflow" else []
            given = {key: filled(text, places) for key, text in service["environment"].items()}
            stack.enter_context(started(command, given, folder, f"http://{site}{health}"))
        yield Servers(prefect, mlflow, s3)


@pytest.mark.timeout(1800)
def test_one_run_on_the_servers_of_compose(servers: Servers, tmp_path: Path) -> None:
    search = f"http://{servers.mlflow}/api/2.0/mlflow/runs/search"
    for wrong in (None, "mill:wrong"):
        assert refusal(f"http://{servers.prefect}/api/flows/filter", {}, wrong) == 401
        assert refusal(search, {"experiment_ids": ["1"]}, wrong) == 401

    project = one_stage_project(tmp_path / "project")
    done = servers.push(project)
    state = flow_state(done.returncode, done.stdout, done.stderr)
    assert state == ("Completed", "ran sample"), done.stderr
    again = project.python("-m", "flows", "pipeline", extra=servers.user, timeout=900)
    assert again.returncode == 0, again.stderr
    runs = servers.of_mlflow("runs/search", experiment_ids=["1"])["runs"]
    assert {run["info"]["status"] for run in runs} == {"FINISHED"}
    assert {"sample"} < {run["info"]["run_name"] for run in runs}
    assert [flow["name"] for flow in servers.of_prefect("flows/filter")] == ["pipeline"]
    assert "record/dvc.lock" in servers.objects("mlflow", "")
    assert "gptmill/runs/" in servers.objects("dvc", "")
    assert PLANTED not in done.stdout + done.stderr
    assert leaks(project, PLANTED) == []


@pytest.mark.timeout(1800)
def test_nine_stages_on_the_servers_of_compose(servers: Servers, tmp_path: Path) -> None:
    project = tiny_project(tmp_path / "project")
    begun = time.monotonic()
    done = servers.push(project, data=False)
    print(f"nine stages and the push took {time.monotonic() - begun:.0f} s")
    state = flow_state(done.returncode, done.stdout, done.stderr)
    assert state == ("Completed", f"ran {', '.join(stages())}"), done.stderr
    assert len(stages()) == 9

    tasks = servers.of_prefect("task_runs/filter")
    assert {task["name"]: task["state"]["type"] for task in tasks} == dict.fromkeys(
        stages(), "COMPLETED"
    )
    runs = servers.of_mlflow("runs/search", experiment_ids=["1"], max_results=1000)["runs"]
    (parent,) = (run for run in runs if run["info"]["run_name"].startswith("pipeline "))
    assert sorted(run["info"]["run_name"] for run in runs if run != parent) == sorted(stages())
    assert {run["info"]["status"] for run in runs} == {"FINISHED"}
    hashes = lock(project)
    for run in runs:
        tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
        for path in stages().get(run["info"]["run_name"], {"outs": []})["outs"]:
            assert tags[f"dvc.out.{path}"] == hashes[path]
        if run != parent:
            assert tags["mlflow.parentRunId"] == parent["info"]["run_id"]
    versions = servers.of_mlflow("model-versions/search?max_results=100")["model_versions"]
    assert len(versions) == len(MODELS)
    assert {version["status"] for version in versions} == {"READY"}
    for version in versions:
        logged = version["source"].removeprefix("models:/")
        assert "model.safetensors" in servers.objects("mlflow", f"1/models/{logged}/")
    for digest in hashes.values():
        assert digest[2:] in servers.objects("dvc", f"gptmill/files/md5/{digest[:2]}/")

    again = project.python("-m", "flows", "pipeline", extra=servers.user, timeout=900)
    assert again.returncode == 0, again.stderr
    assert "nothing ran" in again.stdout
    assert not (project.root / "mlflow" / "mlflow.db").exists()  # all records are on the servers
    assert leaks(project, PLANTED) == []

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
from importlib.util import find_spec
from pathlib import Path

import pytest

from tasks.project.environment import ROOT
from tasks.project.graph import read_yaml
from tests.flows.nights.test_remote import configure
from tests.flows.test_ui import free_port
from tests.promises.test_secrets import PLANTED, ask, leaks, refusal
from tests.support.project import FLOW, HEAD, flow_state, one_stage_project

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


@pytest.mark.timeout(1800)
def test_one_run_on_the_servers_of_compose(tmp_path: Path) -> None:
    compose = read_yaml(ROOT / "deploy" / "compose.yaml")
    databases = re.findall(r"CREATE DATABASE (\w+)", compose["configs"]["databases"]["content"])
    prefect, mlflow, s3 = (f"127.0.0.1:{free_port()}" for _ in range(3))
    with ExitStack() as stack:
        places = {
            "postgres:5432": stack.enter_context(postgres(["prefect", *databases])),
            "http://store:7070": f"http://{s3}",
            "0.0.0.0": "127.0.0.1",
            "/etc/mlflow/auth.ini": str(tmp_path / "auth.ini"),
            "4200": prefect.rpartition(":")[2],
        }
        auth = filled(compose["configs"]["auth"]["content"], places)
        (tmp_path / "auth.ini").write_text(auth)
        words = ["moto.server", "-p", s3.rpartition(":")[2]]
        stack.enter_context(started(words, {}, tmp_path, f"http://{s3}/moto-api/"))
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
            stack.enter_context(started(command, given, tmp_path, f"http://{site}{health}"))

        api, search = f"http://{prefect}/api", f"http://{mlflow}/api/2.0/mlflow/runs/search"
        logins = VALUES["PREFECT_API_AUTH_STRING"], f"admin:{VALUES['MLFLOW_TRACKING_PASSWORD']}"
        for wrong in (None, "mill:wrong"):
            assert refusal(f"{api}/flows/filter", {}, wrong) == 401
            assert refusal(search, {"experiment_ids": ["1"]}, wrong) == 401

        project = one_stage_project(tmp_path / "project")
        remote = ["remote add --local --default backup s3://dvc/gptmill"]
        configure(project, [*remote, f"remote modify --local backup endpointurl http://{s3}"])
        user = {
            "PREFECT_API_URL": api,
            "MLFLOW_TRACKING_URI": f"http://{mlflow}",
            "MLFLOW_TRACKING_USERNAME": "admin",
            **{name: VALUES[name] for name in VALUES if not name.startswith("POSTGRES")},
        }
        asked = json.dumps({"push": True})
        done = project.python("-c", HEAD + FLOW, asked, extra=user, timeout=900)
        state = flow_state(done.returncode, done.stdout, done.stderr)
        assert state == ("Completed", "ran sample"), done.stderr
        assert project.python("-m", "flows", "pipeline", extra=user, timeout=900).returncode == 0
        runs = ask(search, {"experiment_ids": ["1"]}, logins[1])["runs"]
        assert {run["info"]["status"] for run in runs} == {"FINISHED"}
        assert {"sample"} < {run["info"]["run_name"] for run in runs}
        assert [flow["name"] for flow in ask(f"{api}/flows/filter", {}, logins[0])] == ["pipeline"]
        for bucket, key in (("mlflow", "record/dvc.lock"), ("dvc", "gptmill/runs/")):
            with urllib.request.urlopen(f"http://{s3}/{bucket}") as listing:
                assert key in listing.read().decode()
        assert PLANTED not in done.stdout + done.stderr
        assert leaks(project, PLANTED) == []

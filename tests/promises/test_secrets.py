"""Passwords of environment, remote and webhook are in no record, and servers ask for a login."""

import base64
import json
import secrets
import subprocess
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from tests.flows.nights.test_alerts import END, answering, running
from tests.flows.test_ui import free_port
from tests.support.project import Project, one_stage_project

pytestmark = pytest.mark.slow
PLANTED = secrets.token_hex(8)
"""A part of each secret: text that no file of the project has."""
LOGIN = f"mill:{PLANTED}-1"
SECRETS = {
    "PREFECT_SERVER_API_AUTH_STRING": LOGIN,
    "PREFECT_API_AUTH_STRING": LOGIN,
    "MLFLOW_TRACKING_PASSWORD": f"{PLANTED}-2",
    "AWS_SECRET_ACCESS_KEY": f"{PLANTED}-3",
    "HF_TOKEN": f"{PLANTED}-4",
}
ELSEWHERE = dict.fromkeys(("PREFECT_SERVER_API_HOST", "UVICORN_HOST", "MLFLOW_HOST"), "0.0.0.0")
"""Variables that would open the servers to the network."""


class Planted(Project):
    """A project whose user has secrets in the environment."""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), **SECRETS}


class Hook(BaseHTTPRequestHandler):
    """A webhook, and a DVC remote over HTTP, that asks for nothing and refuses to store."""

    bodies: ClassVar[list[bytes]] = []
    paths: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.paths.append(self.path)
        self.send_response(200 if self.path.startswith("/hook") else 403)
        self.end_headers()

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, *words: object) -> None:
        """Print nothing."""


def ask(url: str, content: object = None, login: str | None = LOGIN) -> Any:
    headers = {"Content-Type": "application/json"}
    if login:
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(url, data, headers)
    for _ in range(60):
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code != 503:  # Prefect's database is busy
                raise
            error.close()
            time.sleep(1)
    raise AssertionError(f"{url} is busy")


def refusal(url: str, content: object = None, login: str | None = None) -> int:
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(url, content, login)
    refused.value.close()
    return refused.value.code


def ended(api: str, **parameters: Any) -> dict[str, Any]:
    """Start a run of the deployment as the form does; return the run's last state."""
    deployment = ask(f"{api}/deployments/name/pipeline/nightly")["id"]
    asked = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
    run = ask(f"{api}/deployments/{deployment}/create_flow_run", asked)["id"]
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        state = dict(ask(f"{api}/flow_runs/{run}")["state"])
        if state["name"] in END:
            return state
        time.sleep(0.5)
    raise AssertionError(state)


def listening(project: Project) -> set[str]:
    """Return the addresses on which processes of the project listen."""
    found = set()
    for process in psutil.process_iter(["cwd"]):
        if process.info["cwd"] == str(project.root):
            places = process.net_connections("inet")
            found |= {one.laddr.ip for one in places if one.status == psutil.CONN_LISTEN}
    return found


def leaks(project: Project, secret: str) -> list[str]:
    """Return the places with a secret: files, and the objects of all git's commits."""
    own = project.root / ".dvc" / "config.local"
    files = [path for path in project.root.rglob("*") if path.is_file() and path != own]
    found = [str(path) for path in files if secret.encode() in path.read_bytes()]
    words = ["git", "cat-file", "--batch-all-objects", "--batch"]
    objects = subprocess.run(words, cwd=project.root, capture_output=True, check=True).stdout
    return found + ["git"] * (secret.encode() in objects)


@pytest.mark.timeout(1800)
def test_no_secret_is_in_a_record_and_nobody_without_a_login_is_served(tmp_path: Path) -> None:
    project = Planted(one_stage_project(tmp_path).root)
    hook = HTTPServer(("127.0.0.1", 0), Hook)
    port = free_port()
    ports = {"GPTMILL_PREFECT_PORT": str(port), "GPTMILL_MLFLOW_PORT": str(free_port())}
    api, site = f"http://127.0.0.1:{port}/api", f"127.0.0.1:{hook.server_port}"
    remote = f"http://user:{PLANTED}-5@{site}/remote?token={PLANTED}-6"
    for words in (("add", "--default", "backup", remote), ("modify", "backup", "method", "POST")):
        done = project.python("-m", "dvc", "remote", words[0], "--local", *words[1:])
        assert done.returncode == 0, done.stderr
    alert = f"http://user:{PLANTED}-7@{site}/hook?token={PLANTED}-8"
    said: list[str] = []
    with answering(hook), running(project, "Ctrl-C", "ui", **ports, **ELSEWHERE) as of_ui:
        assert listening(project) == {"127.0.0.1"}
        with running(project, "until Ctrl-C", "serve", ALERT_URL=alert, **ports) as of_worker:
            assert refusal(f"{api}/flows/filter", {}) == 401
            assert refusal(f"{api}/flows/filter", {}, "mill:wrong") == 401
            good, bad = ended(api), ended(api, push=True)
            assert good["name"] == "Completed"
            assert bad["name"] == "Failed"
            assert "`dvc push --run-cache` failed: " in bad["message"]
            deadline = time.monotonic() + 120
            while not Hook.bodies and time.monotonic() < deadline:
                time.sleep(0.5)
        for command in ("pipeline", "serve"):
            done = project.python("-m", "flows", command, extra={"PREFECT_API_AUTH_STRING": ""})
            assert done.returncode == 2
            assert "refuses the login: set PREFECT_API_AUTH_STRING to " in done.stderr
            assert "Traceback" not in done.stderr
            said += done.stdout, done.stderr
        said += of_ui + of_worker
    assert f"token={PLANTED}-8" in "".join(Hook.paths)  # the alert was sent, with its token
    alerts = b"".join(one for one in Hook.bodies if one.startswith(b'{"text"'))
    assert PLANTED.encode() not in alerts
    assert PLANTED not in "".join([*said, json.dumps([good, bad])])
    assert leaks(project, PLANTED) == []

"""Alerts of real runs: `make ui`, `make serve`, and a webhook that counts its calls."""

import json
import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from flows.nights.alerts import alert_url
from tests.flows.test_ui import SCHEDULER, free_port
from tests.support.project import Project, one_stage_project


@pytest.mark.parametrize("url", ["example.org/hook", "ftp://example.org", "http://", "x"])
def test_an_address_that_is_none_is_refused_without_being_shown(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALERT_URL", url)
    with pytest.raises(ValueError, match=r"^ALERT_URL is no address of a webhook: "):
        alert_url()
    monkeypatch.setenv("ALERT_URL", "")
    assert alert_url() is None


class Hook(BaseHTTPRequestHandler):
    """A webhook that keeps the bodies."""

    calls: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.calls.append(json.loads(self.rfile.read(length)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *words: object) -> None:
        """Print nothing."""


@contextmanager
def answering(hook: HTTPServer) -> Iterator[None]:
    """Answer calls of the webhook during the block."""
    thread = threading.Thread(target=hook.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        hook.shutdown()
        hook.server_close()
        thread.join()


@contextmanager
def running(project: Project, until: str, *words: str, **extra: str) -> Iterator[list[str]]:
    """Run a command during the block, which begins with the line `until`; yield the lines."""
    process = subprocess.Popen(
        ["python", "-m", "flows", *words],
        cwd=project.root,
        env={**project.environment(), **extra},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if until in line:
            break
    assert until in lines[-1], "".join(lines)
    rest = threading.Thread(target=lines.extend, args=(process.stdout,), daemon=True)
    rest.start()
    try:
        yield lines
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=90)
        rest.join(timeout=30)
        process.stdout.close()


def call(api: str, path: str, content: object = None) -> Any:
    headers = {"Content-Type": "application/json"}
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(f"{api}/{path}", data, headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def start(api: str, **parameters: Any) -> str:
    """Start a run of the deployment, as the UI's form does; return the run's id."""
    deployment = call(api, "deployments/name/pipeline/nightly")["id"]
    asked = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
    return str(call(api, f"deployments/{deployment}/create_flow_run", asked)["id"])


def wait_for(api: str, run: str, *states: str, seconds: float = 240) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        state = str(call(api, f"flow_runs/{run}")["state"]["name"])
        if state in states:
            return state
        time.sleep(0.5)
    raise AssertionError(f"{run} is {state}")


def calls_of(run: str, *, seconds: float = 60) -> list[dict[str, Any]]:
    """Return the calls for a run, waiting for the first."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := [one for one in Hook.calls if one["run"] == run]:
            return found
        time.sleep(0.5)
    return []


END = ("Completed", "Cached", "Failed", "Crashed", "Cancelled")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_each_bad_end_calls_the_webhook_once_and_a_good_one_never(tmp_path: Path) -> None:
    project = one_stage_project(tmp_path)
    stage = project.root / "tasks" / "sample.py"
    text = stage.read_text(encoding="utf-8")
    hook = HTTPServer(("127.0.0.1", 0), Hook)
    port = free_port()
    ports = {"GPTMILL_PREFECT_PORT": str(port), "GPTMILL_MLFLOW_PORT": str(free_port())}
    api = f"http://127.0.0.1:{port}/api"
    alert = f"http://127.0.0.1:{hook.server_port}/hook"
    with (
        answering(hook),
        running(project, "Ctrl-C", "ui", **ports, **SCHEDULER),
        running(project, "until Ctrl-C", "serve", ALERT_URL=alert, **ports),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            start(api, base="gpt9")
        assert refused.value.code in (409, 422)
        good = [start(api) for _ in range(2)]
        assert [wait_for(api, run, *END) for run in good] == ["Completed", "Completed"]
        bad = start(api, overrides={"sample.times": 101})
        assert wait_for(api, bad, *END) == "Failed"
        (said,) = calls_of(bad)
        assert said["state"] == "Failed"
        assert "sample.times: input should be less than or equal to 100" in said["text"]
        assert said["page"].endswith(bad)

        waits = "import time; time.sleep(600)"
        stage.write_text(text.replace("    texts =", f"    {waits}\n    texts ="), "utf-8")
        cancelled = start(api, force=True)
        wait_for(api, cancelled, "Running")
        wait_for_stage(project)
        call(
            api,
            f"flow_runs/{cancelled}/set_state",
            {"state": {"type": "CANCELLING", "name": "Cancelling"}},
        )
        state = wait_for(api, cancelled, *END)
        assert state == "Cancelled", call(api, f"flow_runs/{cancelled}")["state"]
        assert calls_of(cancelled)[0]["state"] == "Cancelled"
        killed = start(api, force=True)
        wait_for(api, killed, "Running")
        wait_for_stage(project)
        os.kill(flow_process(project), signal.SIGKILL)
        assert wait_for(api, killed, *END) == "Crashed"
        assert calls_of(killed)[0]["state"] == "Crashed"
        time.sleep(10)  # for calls that must not come
        runs = [one["run"] for one in Hook.calls]
        assert sorted(runs) == sorted([bad, cancelled, killed])


def wait_for_stage(project: Project) -> None:
    deadline = time.monotonic() + 120
    while not [one for one in project.processes() if "tasks sample" in one]:
        assert time.monotonic() < deadline
        time.sleep(0.5)


def flow_process(project: Project) -> int:
    """Return the id of the process that runs the flow."""
    (stage,) = (
        one
        for one in psutil.process_iter(["cwd", "cmdline"])
        if one.info["cwd"] == str(project.root)
        and "dvc" in (one.info["cmdline"] or [])
        and "leash" not in " ".join(one.info["cmdline"])
    )
    return next(one.pid for one in stage.parents() if "engine" in " ".join(one.cmdline()))

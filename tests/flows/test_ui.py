"""`make ui` and the temporary server: real servers, on ports of this test's own."""

import json
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.project import Project, copy_tree


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return copy_tree(tmp_path_factory.mktemp("servers"))


@pytest.fixture(scope="module")
def ports() -> dict[str, str]:
    return {"GPTMILL_PREFECT_PORT": str(free_port()), "GPTMILL_MLFLOW_PORT": str(free_port())}


SCHEDULER = {"PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1"}


@pytest.fixture(scope="module")
def ui(project: Project, ports: dict[str, str]) -> Iterator[str]:
    """Run `make ui`'s command and yield what it printed once both servers answered."""
    process = subprocess.Popen(
        ["python", "-m", "flows", "ui"],
        cwd=project.root,
        env={**project.environment(), **ports, **SCHEDULER},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Ctrl-C" in line:
            break
    yield "".join(lines)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert project.processes() == []
    assert not (project.root / ".state" / "servers.json").exists()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return str(answer.read().decode())


def test_both_pages_answer_at_the_addresses_printed(ui: str, ports: dict[str, str]) -> None:
    for port in ports.values():
        address = f"http://127.0.0.1:{port}"
        assert address in ui
        assert "<html" in get(address).lower()


def test_the_pages_talk_to_their_own_server(ui: str, ports: dict[str, str]) -> None:
    site = f"http://127.0.0.1:{ports['GPTMILL_PREFECT_PORT']}"
    assert json.loads(get(f"{site}/ui-settings"))["api_url"] == f"{site}/api"


def post(url: str, content: object) -> Any:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(content).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def test_a_schedule_makes_runs(ui: str, ports: dict[str, str]) -> None:
    # an sqlalchemy that prefect cannot bulk-insert with leaves the server up and this undone
    api = f"http://127.0.0.1:{ports['GPTMILL_PREFECT_PORT']}/api"
    flow = post(f"{api}/flows/", {"name": "pipeline"})["id"]
    schedule = {"active": True, "schedule": {"cron": "0 2 * * *", "timezone": "UTC"}}
    deployment = {"name": "nightly", "flow_id": flow, "schedules": [schedule]}
    made = post(f"{api}/deployments/", deployment)["id"]
    wanted = {"deployments": {"id": {"any_": [made]}}}
    deadline = time.monotonic() + 30
    while not (runs := post(f"{api}/flow_runs/filter", wanted)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert {run["state_type"] for run in runs} == {"SCHEDULED"}


def test_another_site_may_not_drive_prefect(ui: str, ports: dict[str, str]) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{ports['GPTMILL_PREFECT_PORT']}/api/flows/",
        method="OPTIONS",
        headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"},
    )
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request, timeout=30)


def test_a_second_ui_says_that_one_is_up(ui: str, project: Project, ports: dict[str, str]) -> None:
    done = project.python("-m", "flows", "ui", extra=ports)
    assert done.returncode == 2
    assert "`make ui` is already running" in done.stderr


def test_a_taken_port_is_named(project: Project, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        elsewhere = copy_tree(tmp_path)
        extra = {"GPTMILL_PREFECT_PORT": str(port)}
        done = elsewhere.python("-m", "flows", "ui", extra=extra)
    assert done.returncode == 2
    assert f"port {port} is taken" in done.stderr


def test_serve_without_a_server_says_what_to_start(tmp_path: Path) -> None:
    done = copy_tree(tmp_path).python("-m", "flows", "serve")
    assert done.returncode == 2
    assert "start `make ui`" in done.stderr


def test_four_processes_open_a_fresh_store_together(tmp_path: Path) -> None:
    project = copy_tree(tmp_path)
    code = "from tasks.tracking.runs import connect; print(connect())"
    processes = [project.start("python", "-c", code) for _ in range(4)]
    answers = {process.communicate(timeout=120)[0].split()[-1] for process in processes}
    assert {process.returncode for process in processes} == {0}
    assert answers == {"1"}


def test_a_dead_process_s_run_is_closed_by_the_next(tmp_path: Path) -> None:
    project = copy_tree(tmp_path)
    code = (
        "import os; from tasks.tracking.runs import *; import mlflow; e = connect();"
        "mlflow.start_run(experiment_id=e, run_name='x', tags={PROCESS_TAG: this_process()});"
        "os.kill(os.getpid(), 9)"
    )
    assert project.python("-c", code).returncode == -9
    assert [run["status"] for run in project.runs()] == ["RUNNING"]
    code = "from tasks.tracking.runs import *; close_dead_runs(connect())"
    assert project.python("-c", code).returncode == 0
    assert [run["status"] for run in project.runs()] == ["KILLED"]

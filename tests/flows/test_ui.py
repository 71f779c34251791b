"""`make ui` and the temporary server: real servers, on ports of this test's own."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import FOUND, browser
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


def status(port: str, method: str, path: str, headers: dict[str, str]) -> int:
    """Send a request whose headers are as given, and return the status of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=30)
    body = json.dumps({"name": headers["Host"]}) if method == "POST" else None
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


# A write, and the path of the same resource to read; MLflow answers reads of foreign pages, which
# the browser then hides from them.
WRITES = {
    "GPTMILL_PREFECT_PORT": "/api/flows/",
    "GPTMILL_MLFLOW_PORT": "/api/2.0/mlflow/experiments/create",
}


@pytest.mark.parametrize("server", WRITES)
def test_other_names_and_pages_of_other_sites_may_not_use_a_server(
    ui: str, ports: dict[str, str], server: str
) -> None:
    port, path = ports[server], WRITES[server]
    own, json_type = f"127.0.0.1:{port}", {"Content-Type": "application/json"}
    foreign = [
        {"Host": f"evil.example:{port}"},
        {"Host": f"evil.example:{port}", "Origin": f"http://evil.example:{port}"},
        {"Host": f"127.0.0.1.evil.example:{port}"},
        {"Host": f"10.evil.example:{port}"},
        {"Host": "evil.example"},
        {"Host": own, "Origin": "http://evil.example"},
        {"Host": own, "Origin": f"http://evil.example:{port}"},
        {"Host": own, "Origin": f"http://127.0.0.1.evil.example:{port}"},
        {"Host": own, "Origin": "null"},
    ]
    for headers in foreign:
        for sent in (headers, headers | json_type):  # without a type no browser asks first
            assert status(port, "POST", path, sent) == 403, sent
    for headers in foreign[:5]:
        assert status(port, "GET", "/", headers) == 403, headers
    for name in ("127.0.0.1", "localhost", "[::1]"):
        sent = {"Host": f"{name}:{port}", "Origin": f"http://{name}:{port}"} | json_type
        assert status(port, "POST", path, sent) in (200, 201)
        assert status(port, "GET", "/", {"Host": f"{name}:{port}"}) == 200


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Host": "evil.example:{port}"}, 403),
        ({"Host": "127.0.0.1:{port}", "Origin": "http://evil.example"}, 403),
        ({"Host": "127.0.0.1:{port}", "Origin": "http://127.0.0.1:{port}"}, 101),
    ],
)
def test_web_sockets_are_checked_too(
    ui: str, ports: dict[str, str], headers: dict[str, str], expected: int
) -> None:
    port = ports["GPTMILL_PREFECT_PORT"]
    handshake = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        **{name: value.format(port=port) for name, value in headers.items()},
    }
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=30)
    connection.request("GET", "/api/events/in", headers=handshake)
    assert connection.getresponse().status == expected
    connection.close()


POST = """
return fetch(arguments[0], {method: "POST", mode: arguments[1], headers: arguments[2],
  body: JSON.stringify({name: arguments[3]})}).then((r) => r.status, (e) => String(e))
"""
JSON_TYPE = {"Content-Type": "application/json"}


@contextmanager
def serving_pages(folder: Path, port: int) -> Iterator[None]:
    """Serve the files of a folder, as another program on this machine would."""
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.skipif(None in FOUND, reason="chromium and chromedriver are not installed")
def test_no_page_of_another_site_makes_a_flow_in_a_real_browser(
    ui: str, ports: dict[str, str], tmp_path: Path
) -> None:
    port, other = ports["GPTMILL_PREFECT_PORT"], free_port()
    flows = f"http://127.0.0.1:{port}/api/flows/"
    (tmp_path / "index.html").write_text("<!doctype html>a page", encoding="utf-8")
    with (
        serving_pages(tmp_path, other),
        browser(tmp_path / "browser", names="evil.example") as window,
    ):
        # a page of another site, and of another program on this machine
        for host in ("evil.example", "localhost"):
            window.open(f"http://{host}:{other}/")
            assert window.run("return document.body.innerText") == "a page"
            window.run(POST, flows, "no-cors", {}, f"sent by {host}")
            window.run(POST, flows, "cors", JSON_TYPE, f"asked by {host}")
        # the name of another site that points at this machine
        window.open(f"http://evil.example:{port}/")
        assert "is not a name of this server" in window.run("return document.body.innerText")
        foreign = f"http://evil.example:{port}/api/flows/"
        assert window.run(POST, foreign, "cors", JSON_TYPE, "rebound") == 403
        # Prefect's own page
        window.open(f"http://127.0.0.1:{port}/")
        assert window.run(POST, flows, "cors", JSON_TYPE, "own") == 201
    names = {flow["name"] for flow in post(f"{flows}filter", {"limit": 200})}
    assert "own" in names
    assert not [name for name in names if name == "rebound" or " by " in name]


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
    code = "from tasks.tracking.store import connect; print(connect())"
    processes = [project.start("python", "-c", code) for _ in range(4)]
    answers = {process.communicate(timeout=120)[0].split()[-1] for process in processes}
    assert {process.returncode for process in processes} == {0}
    assert answers == {"1"}


def test_a_dead_process_s_run_is_closed_by_the_next(tmp_path: Path) -> None:
    project = copy_tree(tmp_path)
    code = (
        "import os, mlflow; from tasks.tracking.runs import *; e = store.connect();"
        "mlflow.start_run(experiment_id=e, run_name='x', tags={PROCESS_TAG: this_process()});"
        "os.kill(os.getpid(), 9)"
    )
    assert project.python("-c", code).returncode == -9
    assert [run["status"] for run in project.runs()] == ["RUNNING"]
    code = "from tasks.tracking.runs import *; close_dead_runs(store.connect())"
    assert project.python("-c", code).returncode == 0
    assert [run["status"] for run in project.runs()] == ["KILLED"]

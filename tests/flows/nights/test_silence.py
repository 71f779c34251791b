"""A killed worker: nobody is left to tell of the run's end but the missing heartbeat."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import HTTPServer
from pathlib import Path

import psutil
import pytest

from flows.nights.alerts import SILENCE_S
from tests.flows.nights.test_alerts import (
    Hook,
    answering,
    call,
    flow_process,
    running,
    start,
    wait_for,
    wait_for_stage,
)
from tests.flows.test_shared_servers import started
from tests.flows.test_ui import SCHEDULER, free_port
from tests.support.project import Project, one_stage_project

LIMIT_S = 300
"""Seconds within which the webhook is called."""


def beats(api: str, run: str) -> int:
    """Return how many heartbeats of a run Prefect's server has."""
    names = {"name": ["prefect.flow-run.heartbeat"]}
    resource = {"id": [f"prefect.flow-run.{run}"]}
    return int(
        call(api, "events/filter", {"filter": {"event": names, "resource": resource}})["total"]
    )


def start_to_beat(api: str, project: Project) -> str:
    """Start a run of a long stage; return the run's id after two heartbeats."""
    run = start(api, force=True)
    wait_for(api, run, "Running")
    wait_for_stage(project)
    deadline = time.monotonic() + 120
    while beats(api, run) < 2:
        assert time.monotonic() < deadline
        time.sleep(1)
    return run


def kill_worker(project: Project) -> None:
    """Kill the worker and all of its processes at once, as a power cut would."""
    (worker,) = (one for one in psutil.process_iter(["cwd", "cmdline"]) if _is_worker(one, project))
    assert flow_process(project) in [one.pid for one in worker.children(recursive=True)]
    family = [worker, *worker.children(recursive=True)]
    for process in family:
        process.suspend()  # none may tell of the end of another
    for process in family:
        process.kill()
    deadline = time.monotonic() + 60
    while [one for one in project.processes() if "tasks sample" in one]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _is_worker(process: psutil.Process, project: Project) -> bool:
    words = process.info["cmdline"] or []
    return process.info["cwd"] == str(project.root) and words[2:5] == ["prefect", "worker", "start"]


@contextmanager
def server_of_make_ui(project: Project, folder: Path) -> Iterator[dict[str, str]]:
    """Run `make ui`, which sees on its own machine that a process ended."""
    ports = {name: str(free_port()) for name in ("GPTMILL_PREFECT_PORT", "GPTMILL_MLFLOW_PORT")}
    with running(project, "Ctrl-C", "ui", **ports, **SCHEDULER):
        yield {"PREFECT_API_URL": f"http://127.0.0.1:{ports['GPTMILL_PREFECT_PORT']}/api"}


@contextmanager
def server_elsewhere(project: Project, folder: Path) -> Iterator[dict[str, str]]:
    """Run Prefect's server alone, which hears of the project's processes and sees none."""
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    words = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    folder.mkdir()
    with started(words, SCHEDULER, folder, f"{api}/health"):
        yield {"PREFECT_API_URL": api}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("server", "reason"),
    [
        (server_of_make_ui, "the process was killed"),
        (server_elsewhere, f"the run sent no heartbeat for {SILENCE_S} seconds"),
    ],
)
def test_a_run_killed_with_its_worker_calls_the_webhook_once(
    server: Callable[[Project, Path], AbstractContextManager[dict[str, str]]],
    reason: str,
    tmp_path: Path,
) -> None:
    project = one_stage_project(tmp_path / "project")
    stage = project.root / "tasks" / "sample.py"
    text = stage.read_text(encoding="utf-8")
    waits = "import time; time.sleep(900)"
    stage.write_text(text.replace("    texts =", f"    {waits}\n    texts ="), "utf-8")
    hook = HTTPServer(("127.0.0.1", 0), Hook)
    alert = f"http://127.0.0.1:{hook.server_port}/hook"
    with answering(hook), server(project, tmp_path / "server") as address:
        Hook.calls.clear()
        api, serve = address["PREFECT_API_URL"], {"ALERT_URL": alert, **address}
        with running(project, "until Ctrl-C", "serve", **serve):
            killed = start_to_beat(api, project)
            kill_worker(project)
            since = time.monotonic()
        with running(project, "until Ctrl-C", "serve", **serve):  # as a supervisor does at once
            healthy = start(api, force=True)
            while not Hook.calls:
                assert time.monotonic() < since + LIMIT_S, call(api, f"flow_runs/{killed}")["state"]
                time.sleep(0.5)
            print(f"the webhook was called {time.monotonic() - since:.0f} s after the kill")
            wait_for(api, healthy, "Running")  # the killed run held the deployment's only place
            time.sleep(SILENCE_S + 30)  # heartbeats keep a long run alive; no call comes twice
            assert call(api, f"flow_runs/{killed}")["state"]["name"] == "Crashed"
            assert call(api, f"flow_runs/{healthy}")["state"]["name"] == "Running"
            (said,) = Hook.calls
            assert (said["run"], said["state"]) == (killed, "Crashed")
            assert reason in said["text"]

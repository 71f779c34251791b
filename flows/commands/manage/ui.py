"""`make ui`: Prefect's and MLflow's pages, until Ctrl-C."""

import time
from contextlib import ExitStack

from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.flow_states import settle
from flows.prefect_server import PAGES, check_login, noted, prefect_server, running_prefect
from flows.servers import MLFLOW_VIEW, is_free, mlflow_port, mlflow_server, prefect_port
from tasks.tracking.runs import close_dead_runs
from tasks.tracking.store import connect

CHECK_S = 10.0  # seconds between two looks at the runs of dead processes


def main(arguments: list[str]) -> int:
    """Start both servers, print their addresses, stop both together."""
    if arguments:
        raise ValueError(f"`make ui` takes no arguments; given: {' '.join(arguments)}")
    _check_ports()
    print("starting Prefect and MLflow, about 15 seconds ...", flush=True)
    experiment = connect()
    close_dead_runs(experiment)
    with ExitStack() as stack:
        prefect = stack.enter_context(prefect_server(prefect_port(), pages=True))
        check_login(prefect)
        mlflow = stack.enter_context(mlflow_server(mlflow_port()))
        stack.enter_context(noted(prefect, mlflow))
        site = prefect.removesuffix("/api")
        print(f"\nPrefect  {site}/{PAGES}/   runs, pages, schedules")
        print(f"MLflow   {mlflow}/#/experiments/{experiment}/runs?{MLFLOW_VIEW}")
        print("         metrics, models, comparisons")
        print(
            "\nCtrl-C stops both. In a second terminal: `make pipeline`, `make serve`.", flush=True
        )
        with temporary_settings(updates={PREFECT_API_URL: prefect}):
            while True:
                settle()
                time.sleep(CHECK_S)


def _check_ports() -> None:
    running = running_prefect()
    if running:
        raise ValueError(
            f"`make ui` is already running: Prefect is at {running.removesuffix('/api')}"
        )
    for name, port in (("PREFECT", prefect_port()), ("MLFLOW", mlflow_port())):
        if not is_free(port):
            raise ValueError(
                f"port {port} is taken by a different program: stop the program, "
                f"or choose a free port, `GPTMILL_{name}_PORT={port + 1} make ui`"
            )

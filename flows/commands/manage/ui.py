"""`make ui`: Prefect's and MLflow's pages, until Ctrl-C."""

import signal
from contextlib import ExitStack

from flows.servers import (
    is_free,
    mlflow_port,
    mlflow_server,
    noted,
    prefect_port,
    prefect_server,
    running_prefect,
)
from tasks.tracking.runs import close_dead_runs
from tasks.tracking.store import connect


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
        mlflow = stack.enter_context(mlflow_server(mlflow_port()))
        stack.enter_context(noted(prefect, mlflow))
        print(f"\nPrefect  {prefect.removesuffix('/api')}   runs, pages, schedules")
        print(f"MLflow   {mlflow}/#/experiments/{experiment}/runs   metrics, models, comparisons")
        print(
            "\nCtrl-C stops both. In a second terminal: `make pipeline`, `make serve`.", flush=True
        )
        signal.pause()
    return 0


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

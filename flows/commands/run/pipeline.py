"""`make pipeline`: run the flow once, in this terminal."""

import importlib

from flows.prefect_server import prefect_api
from tasks.tracking import runs, store

NEXT = """results   artifacts/ (one folder a stage), artifacts/evaluate/report.md
next      make ui                     pages of every run, models, comparisons
          edit params.yaml, then `make pipeline`: only the affected stages run again
          dvc metrics diff            effect of the last change on the metrics"""


def main(arguments: list[str]) -> int:
    """Run the pipeline once, in this terminal."""
    if arguments:
        raise ValueError(f"`make pipeline` takes no arguments; given: {' '.join(arguments)}")
    api = prefect_api(meanwhile=_load)
    from flows.terminal import run_here

    if not run_here(api):
        print("fix the error and run `make pipeline` again: finished stages are kept")
        return 1
    print(NEXT)
    return 0


def _load() -> None:
    """Import Prefect, and open MLflow's file: two seconds each, while Prefect's server starts."""
    importlib.import_module("flows.terminal")
    if not store.is_server(store.tracking_uri()):  # which may let a request wait
        runs.experiment()

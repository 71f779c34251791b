"""`make pipeline`: run the flow once, in this terminal."""

import importlib

from rich.console import Console

from flows.prefect_server import prefect_api
from flows.terminal import logs
from tasks.project.environment import ROOT
from tasks.tracking import runs, store

NEXT = """report    artifacts/evaluate/report.md; `make report` writes a page with plots
try       gptmill chat artifacts/instruct
          gptmill generate artifacts/pretrain "Once upon a time" --temperature 0.8
          gptmill classify artifacts/classify "See you at lunch"
next      make ui                     pages of every run, models, comparisons
          edit params.yaml, then `make pipeline`: only the affected stages run again
          dvc metrics diff            effect of the last change on the metrics"""


def main(arguments: list[str]) -> int:
    """Run the pipeline once, in this terminal."""
    if arguments:
        raise ValueError(f"`make pipeline` takes no arguments; given: {' '.join(arguments)}")
    with Console(stderr=True).status("starting Prefect's server"):
        api = prefect_api(meanwhile=_load)
    from flows.terminal.running import run_here

    log = logs.new_file()
    try:
        completed = run_here(api, log)
        print(NEXT if completed else AGAIN)
    finally:
        print(f"log       {log.relative_to(ROOT)}", flush=True)
    return 0 if completed else 1


AGAIN = "fix the error and run `make pipeline` again: finished stages are kept"


def _load() -> None:
    """Import Prefect, and open MLflow's file: two seconds each, while Prefect's server starts."""
    importlib.import_module("flows.terminal.running")
    if not store.is_server(store.tracking_uri()):  # which may let a request wait
        runs.experiment()

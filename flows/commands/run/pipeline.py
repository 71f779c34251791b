"""`make pipeline`: the flow, once, in this terminal."""

import logging

from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, temporary_settings

from flows.pipeline import close_dead_flows, pipeline
from flows.servers import HOST, prefect_api, prefect_port

NEXT = """results   artifacts/ (one folder a stage), artifacts/evaluate/report.md
next      make ui                     pages of every run, models, comparisons
          edit params.yaml, then `make pipeline`: only what the change touches runs
          dvc metrics diff            what the last change did"""


def _without_empty_traceback(record: logging.LogRecord) -> bool:
    """Drop the words `NoneType: None`, which Prefect logs behind a state that failed politely."""
    if record.exc_info and record.exc_info[0] is None:
        record.exc_info = None
    return True


def main(arguments: list[str]) -> int:
    """Run the pipeline once, in this terminal."""
    if arguments:
        raise ValueError(f"`make pipeline` takes no words; given: {' '.join(arguments)}")
    logging.getLogger("prefect.task_runs").addFilter(_without_empty_traceback)
    # runs are found under `make ui`, also those that a temporary server took down
    ui = f"http://{HOST}:{prefect_port()}"
    settings = {PREFECT_API_URL: prefect_api(), PREFECT_UI_URL: ui}
    with temporary_settings(updates=settings):
        close_dead_flows()
        state = pipeline(return_state=True)
    if not state.is_completed():
        print("mend it and run `make pipeline` again: finished stages are kept")
        return 1
    print(NEXT)
    return 0

"""`make pipeline`: run the flow once, in this terminal."""

import logging

from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, temporary_settings

from flows.pipeline import close_dead_flows, pipeline
from flows.servers import HOST, prefect_api, prefect_port

NEXT = """results   artifacts/ (one folder a stage), artifacts/evaluate/report.md
next      make ui                     pages of every run, models, comparisons
          edit params.yaml, then `make pipeline`: only the affected stages run again
          dvc metrics diff            effect of the last change on the metrics"""


def _without_empty_traceback(record: logging.LogRecord) -> bool:
    """Remove an empty traceback from a log record.

    Prefect logs `NoneType: None` after a state that failed without an exception.
    """
    if record.exc_info and record.exc_info[0] is None:
        record.exc_info = None
    return True


def main(arguments: list[str]) -> int:
    """Run the pipeline once, in this terminal."""
    if arguments:
        raise ValueError(f"`make pipeline` takes no arguments; given: {' '.join(arguments)}")
    logging.getLogger("prefect.task_runs").addFilter(_without_empty_traceback)
    # `make ui` shows all runs, also the runs recorded by a temporary server
    ui = f"http://{HOST}:{prefect_port()}"
    settings = {PREFECT_API_URL: prefect_api(), PREFECT_UI_URL: ui}
    with temporary_settings(updates=settings):
        close_dead_flows()
        state = pipeline(return_state=True)
    if not state.is_completed():
        print("fix the error and run `make pipeline` again: finished stages are kept")
        return 1
    print(NEXT)
    return 0

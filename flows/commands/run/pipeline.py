"""`make pipeline`: run the flow once, in this terminal."""

from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, temporary_settings

from flows.flow_states import UNREACHABLE, noted_here, prefect_answers, quiet_logging, settle
from flows.pipeline import pipeline
from flows.prefect_server import pages_at, prefect_api

NEXT = """results   artifacts/ (one folder a stage), artifacts/evaluate/report.md
next      make ui                     pages of every run, models, comparisons
          edit params.yaml, then `make pipeline`: only the affected stages run again
          dvc metrics diff            effect of the last change on the metrics"""
UNTOLD = (
    "Prefect's server does not answer, and shows this run as running until `make ui` or the next "
    "`make pipeline` gives Prefect the run's states"
)


def main(arguments: list[str]) -> int:
    """Run the pipeline once, in this terminal."""
    if arguments:
        raise ValueError(f"`make pipeline` takes no arguments; given: {' '.join(arguments)}")
    api = prefect_api()
    pages = pages_at(api)
    quiet_logging(link=pages is not None)
    with temporary_settings(updates={PREFECT_API_URL: api, PREFECT_UI_URL: pages}):
        completed = _run()
    if not completed:
        print("fix the error and run `make pipeline` again: finished stages are kept")
        return 1
    print(NEXT)
    return 0


def _run() -> bool:
    """Run the flow, give Prefect all states, and return whether the work is complete."""
    try:
        settle()
        completed = pipeline(return_state=True).is_completed()
    except RuntimeError as error:
        if "Failed to reach API" in str(error):
            raise ValueError(f"{error}: the Prefect server ended; repeat the command") from error
        raise
    except UNREACHABLE:
        completed = noted_here()["type"] == "COMPLETED"
    if prefect_answers():
        settle(own=True)
    else:
        print(UNTOLD)
    return bool(completed)

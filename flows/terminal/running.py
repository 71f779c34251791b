"""A run of the flow in this terminal, with Prefect's states settled before and afterwards."""

from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, temporary_settings

from flows.flow_states import UNREACHABLE, noted_here, prefect_answers, quiet_logging, settle
from flows.pipeline import pipeline
from flows.prefect_server import pages_at

UNTOLD = (
    "Prefect's server does not answer, and shows this run as running until `make ui` or the next "
    "`make pipeline` gives Prefect the run's states"
)


def run_here(api: str) -> bool:
    """Run the flow, give Prefect all states, and return whether the work is complete."""
    pages = pages_at(api)
    quiet_logging(link=pages is not None)
    with temporary_settings(updates={PREFECT_API_URL: api, PREFECT_UI_URL: pages}):
        return _run()


def _run() -> bool:
    try:
        settle()
        completed = pipeline(data=False, return_state=True).is_completed()
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

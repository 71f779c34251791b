"""A run of the flow in this terminal, with Prefect's states settled before and afterwards."""

import os
import sys
from pathlib import Path

from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, temporary_settings

from flows.flow_states import UNREACHABLE, noted_here, prefect_answers, quiet_logging, settle
from flows.pipeline import pipeline
from flows.prefect_server import pages_at
from flows.terminal import logs
from flows.terminal.board import Board
from flows.terminal.views import VIEW, Lines, View

UNTOLD = (
    "Prefect's server does not answer, and shows this run as running until `make ui` or the next "
    "`make pipeline` gives Prefect the run's states"
)


def run_here(api: str, log: Path) -> bool:
    """Run the flow, give Prefect all states, and return whether the work is complete."""
    pages = pages_at(api)
    quiet_logging(link=pages is not None)
    logs.write_to(log, terminal=logs.is_verbose())
    with (
        temporary_settings(updates={PREFECT_API_URL: api, PREFECT_UI_URL: pages}),
        _view() as view,
    ):
        VIEW.set(view)
        return _run(view)


def _view() -> View:
    """Return the view for standard output."""
    if logs.is_verbose():
        return View()
    bars = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    return Board() if bars else Lines()


def _run(view: View) -> bool:
    try:
        settle()
        state = pipeline(data=False, return_state=True)
        completed, message = state.is_completed(), state.message
    except RuntimeError as error:
        if "Failed to reach API" in str(error):
            raise ValueError(f"{error}: the Prefect server ended; repeat the command") from error
        raise
    except UNREACHABLE:
        noted = noted_here()
        completed, message = noted["type"] == "COMPLETED", noted["message"]
    if not completed:
        view.fail(message or "the pipeline failed")
    if prefect_answers():
        settle(own=True)
    else:
        print(UNTOLD)
    return bool(completed)

"""True states of flow runs in Prefect, also after its server or the flow's process died.

Each flow run of this project has a note in `.state/flows/` while its process lives. The note holds
the states of the flow run and of its tasks as the work itself knows them. Where the process has
ended, `settle` gives these states to Prefect: Prefect alone would show such runs as running.
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect import State
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled

from flows.servers import answers
from gptmill.files import write_json
from tasks.project.environment import ROOT
from tasks.tracking import runs

NOTES = ROOT / ".state" / "flows"
KILLED = {"type": "CRASHED", "name": "Crashed", "message": "the process was killed"}
UNREACHABLE = (httpx.HTTPError, OSError)  # no server, a hung server, or a server with errors

PAUSE_S = 15.0  # seconds between two attempts to reach a silent server
RESTART_S = 40.0  # seconds that a server needs to start again

T = TypeVar("T")


class FlowNote:
    """The note of a flow run of this process."""

    def __init__(self, flow_run: str) -> None:
        self.path = NOTES / f"{flow_run}.json"
        self.content: dict[str, Any] = {"process": runs.this_process(), "tasks": {}, "flow": KILLED}
        self.silent_until = 0.0

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the note during the block, and afterwards until Prefect has the states."""
        self._write()
        try:
            yield
        except BaseException:
            # Prefect's engine itself reports the cancelled or crashed run, if the server answers
            self.content["flow"] = {**KILLED, "message": "the run was stopped"}
            self._write()
            raise

    def task(self, task_run: str, state: State[Any]) -> None:
        """Note the final state of a task run."""
        self.content["tasks"][task_run] = _plain(state)
        self._write()

    def flow(self, state: State[Any]) -> None:
        """Note the final state of the flow run."""
        self.content["flow"] = _plain(state)
        self._write()

    def send(self, call: Callable[[], T]) -> T | None:
        """Send a page to Prefect; without its server, say so once, and go on."""
        if time.monotonic() < self.silent_until:
            return None
        try:
            if prefect_answers():
                return call()
        except UNREACHABLE:
            pass
        if not self.silent_until:
            print(
                "Prefect's server does not answer: the work goes on, and Prefect gets the states "
                "of this run when the server is back",
                file=sys.stderr,
                flush=True,
            )
        self.silent_until = time.monotonic() + PAUSE_S
        return None

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.content)


def quiet_logging(*, link: bool) -> None:
    """Log no errors of a silent server, nor empty tracebacks; the link to the run by choice."""
    logging.raiseExceptions = False  # Prefect's handler prints logs that found no server
    logging.getLogger("prefect.task_runs").addFilter(_is_worth_reading)
    logging.getLogger("prefect.flow_runs").addFilter(_is_worth_reading)
    if not link:
        hidden = logging.getLogger("prefect.flow_runs")
        hidden.addFilter(lambda record: not str(record.msg).startswith("View at "))
    for name in ("prefect.events.clients", "prefect._internal.concurrency"):
        logging.getLogger(name).addFilter(lambda record: False)  # a level would be set anew


def _is_worth_reading(record: logging.LogRecord) -> bool:
    """Return whether a log record tells about the work.

    Prefect logs `NoneType: None` after a state that failed without an exception.
    """
    if record.exc_info and record.exc_info[0] is None:
        record.exc_info = None
    unreachable = record.exc_info and isinstance(record.exc_info[1], UNREACHABLE)
    return not unreachable and "Finished in state Running" not in record.getMessage()


def prefect_answers() -> bool:
    """Return whether the Prefect server of this process answers."""
    return answers(f"{PREFECT_API_URL.value()}/health", patience=2.0)


def wait_for_prefect() -> None:
    """Wait for a Prefect server that is starting again, so that it gets the run's last state."""
    deadline = time.monotonic() + RESTART_S
    while not prefect_answers() and time.monotonic() < deadline:
        time.sleep(0.5)


def noted_here() -> dict[str, str]:
    """Return the newest noted state of a flow run of this process: type, name, message.

    Raises ValueError where no flow run began.
    """
    notes = [json.loads(path.read_bytes()) for path in NOTES.glob("*.json")]
    own = [note for note in notes if note["process"] == runs.this_process()]
    if not own:
        raise ValueError("Prefect's server ended before the pipeline began: repeat the command")
    return dict(own[-1]["flow"])


def settle(*, own: bool = False) -> None:
    """Give Prefect the noted states of runs whose process has ended, or also of this process."""
    for path in NOTES.glob("*.json"):
        content = _read(path)
        if content is None:
            path.unlink(missing_ok=True)
        elif runs.is_dead(content["process"]) or (
            own and content["process"] == runs.this_process()
        ):
            try:
                with get_client(sync_client=True) as client:
                    _settle(client, UUID(path.stem), content)
            except UNREACHABLE:
                return  # the note stays until a server answers
            path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    """Load a note; None, with a line on stderr, where the note is unreadable."""
    try:
        content = json.loads(path.read_bytes())
        UUID(path.stem)
        states = [content.get("flow", KILLED), *content.get("tasks", {}).values()]
        for state in states:
            _state(state)
        runs.is_dead(content["process"])
        return dict(content)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        print(f"{path.relative_to(ROOT)} is unreadable and counts as none", file=sys.stderr)
        return None


def _settle(client: SyncPrefectClient, flow_run: UUID, content: dict[str, Any]) -> None:
    flow = _state(content.get("flow", KILLED))
    with suppress(ObjectNotFound):  # a deleted run, or a run of another server
        current = client.read_flow_run(flow_run).state
        if current is not None and current.is_cancelling():
            flow = Cancelled(message="the run was cancelled")
        if current is None or not current.is_final():
            client.set_flow_run_state(flow_run, flow, force=True)
    known = {UUID(name): _state(state) for name, state in content.get("tasks", {}).items()}
    of_flow = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run]))
    for task in client.read_task_runs(flow_run_filter=of_flow):
        if task.state is None or not task.state.is_final():
            client.set_task_run_state(task.id, known.get(task.id, flow), force=True)


def _plain(state: State[Any]) -> dict[str, str]:
    return {"type": state.type.value, "name": state.name or "", "message": state.message or ""}


def _state(plain: dict[str, str]) -> State[Any]:
    return State(type=StateType(plain["type"]), name=plain["name"], message=plain["message"])

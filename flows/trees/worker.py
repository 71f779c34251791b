"""`python -m flows.trees.worker CALL FILE`: a call in the worktree of a run or of a sweep's trial.

The call is the name of a function below with its arguments, as JSON. The result goes to FILE. The
working directory is the worktree, and ROOT is the worktree, too.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tasks.processes.process import Terminated, raise_on_sigterm
from tasks.project.environment import set_environment, use_own_source


def main(arguments: list[str]) -> int:
    """Answer a call and return the exit status; a user's mistake is a part of the answer."""
    raise_on_sigterm()
    set_environment()
    use_own_source()
    from gptmill.files import write_json
    from tasks.tracking.store import AwayError

    call, file = json.loads(arguments[0]), Path(arguments[1])
    try:
        answer = {"result": CALLS[call["name"]](**call["arguments"])}
    except KeyboardInterrupt:
        return 130
    except Terminated as stop:
        from tasks.tracking.runs import close_orphaned_parents

        close_orphaned_parents()
        return 128 + stop.number
    except AwayError as error:
        answer = {"away": str(error)}
    except (ValueError, OSError) as error:
        answer = {"mistake": str(error)}
    write_json(file, answer)
    return 0


def data(*, read: bool) -> dict[str, Any] | None:
    """Restore the pinned data, and read the sources by choice."""
    from flows.trees.here import Here

    Here().restore_data()
    obstacle = Here().read_sources() if read else None
    return None if obstacle is None else asdict(obstacle)


def pinned() -> None:
    """Take the pinned data, by hash; raise ValueError where only other bytes are left."""
    from flows.commands.data.data import make_data, read_table
    from flows.dvc import pins
    from tasks.project.environment import ROOT

    pin = pins.read_pin(ROOT)
    if pin is None or pins.matches(ROOT, pin) or pins.restore(ROOT, pin):
        return
    make_data(ROOT, read_table(ROOT / "sources.toml"))
    if not pins.matches(ROOT, pin):
        raise ValueError(
            f"the data of the run, {pin.md5}, is neither in DVC's cache nor in a remote, and the "
            "sources have other bytes now"
        )


def order(*, chosen: list[str]) -> list[str]:
    """Return the chosen stages and all stages before them, in the graph's order."""
    from tasks.project.graph import ancestors, stages

    names = {*chosen, *(above for name in chosen for above in ancestors(name))}
    return [name for name in stages() if name in names]


def bring(*, stage: str, context: Mapping[str, str], force: bool) -> dict[str, Any]:
    """Bring a stage up to date; the starter reads the events."""
    from flows.trees.here import Here

    outcome, results = Here().bring(
        stage,
        on_line=lambda line: print(line, flush=True),
        on_event=lambda event: None,
        context=context,
        unchanged=False,
        force=force,
    )
    return {"outcome": asdict(outcome), "results": asdict(results)}


def trial(*, stage: str) -> dict[str, Any]:
    """Bring a trial's stage and its upstream stages up to date, until the first failure."""
    from flows.dvc.repro import FAILED, repro
    from flows.trees.here import Here
    from tasks.project.graph import ancestors

    Here().restore_data()
    states: dict[str, str] = {}
    for name in [*ancestors(stage), stage]:
        outcome = repro(name, on_line=lambda line: print(line, flush=True))
        states[name] = outcome.state
        if outcome.state == FAILED:
            return {"failed": name, "message": outcome.message, "states": states}
    return {"failed": None, "message": "", "states": states}


def review() -> list[dict[str, Any]]:
    """Register and judge the models of the worktree."""
    from flows.trees.here import Here

    return [asdict(one) for one in Here().review()]


def report(*, title: str) -> str:
    """Return the report on the worktree's artifacts."""
    from flows.trees.here import Here

    return Here().report(title)


def figures() -> dict[str, float]:
    """Return the main figures of the worktree's evaluation."""
    from flows.trees.here import Here

    return Here().figures()


CALLS: dict[str, Callable[..., Any]] = {
    "data": data,
    "pinned": pinned,
    "order": order,
    "bring": bring,
    "trial": trial,
    "review": review,
    "report": report,
    "figures": figures,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

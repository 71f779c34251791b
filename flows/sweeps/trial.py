"""`python -m flows.sweeps.trial STAGE FILE`: what a sweep runs in the worktree of a trial.

It brings the stage, and all that it rests on, up to date with the worktree's own code, and
writes to FILE what became of them. Its folder is the worktree, so ROOT is, too.
"""

import sys
from pathlib import Path
from typing import Any

from tasks.processes.process import Terminated, raise_on_sigterm
from tasks.project.environment import ROOT, set_environment, use_own_source


def main(arguments: list[str]) -> int:
    """Run one trial; a sweep that was killed is closed in MLflow on the way out."""
    raise_on_sigterm()
    set_environment()
    use_own_source()
    stage, file = arguments
    try:
        result = bring_up_to_date(stage)
    except KeyboardInterrupt:
        return 130
    except Terminated as stop:
        from tasks.tracking.runs import close_orphaned_parents

        close_orphaned_parents()
        return 128 + stop.number
    except (ValueError, OSError) as error:
        result = {"failed": "", "message": str(error), "states": {}}
    from gptmill.files import write_json

    write_json(Path(file), result)
    return 0


def bring_up_to_date(stage: str) -> dict[str, Any]:
    """Run what is stale of a stage and of what it rests on, up to the first that fails."""
    from flows.dvc.pins import dvc
    from flows.dvc.repair import repair
    from flows.dvc.repro import FAILED, repro
    from tasks.project.graph import ancestors
    from tasks.tracking import runs

    repair()
    if (ROOT / "data.dvc").exists():
        # copied or cloned, never linked: nothing that a trial does reaches the cache's files
        dvc(ROOT, "checkout", "--quiet", "--force", "data.dvc")
    states: dict[str, str] = {}
    for name in [*ancestors(stage), stage]:
        outcome = repro(name, on_line=lambda line: print(line, flush=True))
        states[name] = outcome.state
        if outcome.state == FAILED:
            start = outcome.first("start")
            if start:
                runs.close_killed(start["run"], outcome.message)
            return {"failed": name, "message": outcome.message, "states": states}
    return {"failed": None, "message": "", "states": states}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

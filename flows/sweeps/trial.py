"""`python -m flows.sweeps.trial STAGE FILE`: a trial's process.

A sweep runs this module in the worktree of a trial. The module brings the stage and all stages
upstream up to date with the worktree's own code, and writes their outcome to FILE. The working
directory is the worktree, and ROOT is the worktree, too.
"""

import sys
from pathlib import Path
from typing import Any

from tasks.processes.process import Terminated, raise_on_sigterm
from tasks.project.environment import ROOT, set_environment, use_own_source


def main(arguments: list[str]) -> int:
    """Run a trial and return its exit status.

    On SIGTERM, the MLflow runs of a killed sweep are closed before the exit.
    """
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
    """Run a stage and its upstream stages where stale.

    The first failure ends the run.
    """
    from flows.dvc.command import dvc
    from flows.dvc.repair import repair
    from flows.dvc.repro import FAILED, repro
    from tasks.project.graph import ancestors

    repair()
    if (ROOT / "data.dvc").exists():
        # DVC copies or clones, and never links: a trial cannot change the cache's files
        dvc(ROOT, "checkout", "--quiet", "--force", "data.dvc")
    states: dict[str, str] = {}
    for name in [*ancestors(stage), stage]:
        outcome = repro(name, on_line=lambda line: print(line, flush=True))
        states[name] = outcome.state
        if outcome.state == FAILED:
            return {"failed": name, "message": outcome.message, "states": states}
    return {"failed": None, "message": "", "states": states}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

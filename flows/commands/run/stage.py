"""`make STAGE`: check the inputs, then update the stage.

DVC's `--single-item` accepts inputs without a check; `make STAGE` raises an error for stale
inputs. The stage runs as in a pipeline run, with the same repairs, checks and messages.
"""

import sys

from flows.dvc.repair import repair
from flows.dvc.repro import FAILED, RESTORED, UNCHANGED, repro, stale_stages
from flows.results import result_lines
from tasks.frame.restored import record_restored
from tasks.processes import locks
from tasks.project.graph import ancestors, check_inputs, forget, one_stage


def main(arguments: list[str]) -> int:
    """Check the inputs, update the stage, print the result."""
    stage = one_stage(arguments)
    printed: list[str] = []

    def on_line(line: str) -> None:
        print(line, flush=True)
        printed.append(line)

    with locks.project(f"make {stage}"):
        forget()  # while this command waited, another one may have written params.yaml
        repair()
        check_inputs(stage)
        _check_fresh(stage)
        outcome = repro(stage, on_line=on_line)
        if outcome.state in (RESTORED, UNCHANGED):
            record_restored(stage)
    if outcome.state == FAILED:
        if outcome.message.splitlines()[0] not in printed:
            print(outcome.message, file=sys.stderr)
        return 1
    print("\n".join(result_lines(stage, outcome.state)))
    return 0


def _check_fresh(stage: str) -> None:
    """Raise ValueError where an upstream stage is stale.

    A stage is stale after a change of its code or params, and would run again.
    """
    if stale := stale_stages(ancestors(stage)):
        also = f" (and {', '.join(stale[1:])})" if stale[1:] else ""
        raise ValueError(
            f"{stage}: the inputs are stale, since {stale[0]}{also} would run again: "
            f"run `make {stale[0]}` first, or `make pipeline` for all stages"
        )

"""`make STAGE`: check the inputs, then update the stage.

DVC's `--single-item` accepts inputs without a check; `make STAGE` raises an error for stale
inputs.
"""

import json
import os
import subprocess
import sys

from flows.dvc.repair import repair
from tasks.project.environment import ROOT
from tasks.project.graph import ancestors, check_inputs, one_stage


def main(arguments: list[str]) -> int:
    """Check the inputs, then run the stage in the foreground."""
    stage = one_stage(arguments)
    repair()
    check_inputs(stage)
    _check_fresh(stage)
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage]
    os.chdir(ROOT)
    os.execv(sys.executable, command)


def _check_fresh(stage: str) -> None:
    """Raise ValueError where an upstream stage is stale.

    A stage is stale after a change of its code or params, and would run again.
    """
    upstream = ancestors(stage)
    if not upstream:
        return
    result = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json", *upstream],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        raise ValueError(f"dvc status: {result.stderr.strip()}")
    stale = [name for name in upstream if name in json.loads(result.stdout)]
    if stale:
        also = f" (and {', '.join(stale[1:])})" if stale[1:] else ""
        raise ValueError(
            f"{stage}: the inputs are stale, since {stale[0]}{also} would run again: "
            f"run `make {stale[0]}` first, or `make pipeline` for all stages"
        )

"""`make STAGE`: bring one stage up to date, after a look at what it rests on.

DVC's `--single-item` takes inputs as they lie there; this says so where they are stale.
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
    """Raise ValueError where a stage upstream would run again: its code or params changed."""
    rests_on = ancestors(stage)
    if not rests_on:
        return
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json", *rests_on],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise ValueError(f"dvc status: {done.stderr.strip()}")
    stale = [name for name in rests_on if name in json.loads(done.stdout)]
    if stale:
        also = f" (and {', '.join(stale[1:])})" if stale[1:] else ""
        raise ValueError(
            f"{stage}: what it reads is stale, since {stale[0]}{also} would run again: "
            f"`make {stale[0]}` first, or `make pipeline` for all"
        )

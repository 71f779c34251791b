"""`make fresh STAGE=x`: drop a stage's unfinished training.

The stage's next run trains from the beginning.
"""

from tasks.frame import resume
from tasks.processes import locks
from tasks.project.graph import one_stage


def main(arguments: list[str]) -> int:
    """Remove a stage's training states; keep finished outputs."""
    stage = one_stage(arguments)
    with locks.project(f"make fresh STAGE={stage}"):
        for line in resume.fresh(stage) or [f"{stage}: no unfinished training to drop"]:
            print(line)
    return 0

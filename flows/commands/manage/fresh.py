"""`make fresh STAGE=x`: drop what a stage has trained so far, so that it begins anew."""

from tasks.frame import resume
from tasks.project.graph import one_stage


def main(arguments: list[str]) -> int:
    """Remove the states of a stage's training; outputs that are finished stay."""
    stage = one_stage(arguments)
    resume.claim(stage)
    for line in resume.fresh(stage) or [f"{stage}: there is no training to drop"]:
        print(line)
    return 0

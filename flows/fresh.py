"""`make fresh STAGE=x`: drop what a stage has trained so far, so that it begins anew."""

from tasks import _resume
from tasks._project import stages


def main(arguments: list[str]) -> int:
    """Remove the states of a stage's training; outputs that are finished stay."""
    if len(arguments) != 1 or arguments[0] not in stages():
        given = " ".join(arguments) or "nothing"
        raise ValueError(f"name one stage of {', '.join(stages())}, STAGE=x; given: {given}")
    stage = arguments[0]
    _resume.claim(stage)
    for line in _resume.fresh(stage) or [f"{stage}: there is no training to drop"]:
        print(line)
    return 0

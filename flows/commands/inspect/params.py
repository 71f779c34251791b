"""`make params`: every value of params.yaml that a stage gets, with what stages share put in."""

import json

from tasks.project.graph import one_stage, params, stages
from tasks.tracking.runs import flatten


def main(arguments: list[str]) -> int:
    """Print one value a line: those of one stage, or of all."""
    sections = stages()[one_stage(arguments)]["params"] if arguments else list(params())
    content = {name: params()[name] for name in sections if name in params() and name != "shared"}
    for name, value in flatten(content).items():
        print(f"{name}: {json.dumps(value)}")
    return 0

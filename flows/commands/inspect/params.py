"""`make params`: every value of params.yaml, by stage.

Shared values are resolved into the values of each stage.
"""

import json

from tasks.project.graph import one_stage, params, stages
from tasks.tracking.runs import flatten


def main(arguments: list[str]) -> int:
    """Print the values of a stage or all stages."""
    sections = stages()[one_stage(arguments)]["params"] if arguments else list(params())
    content = {name: params()[name] for name in sections if name in params() and name != "shared"}
    for name, value in flatten(content).items():
        print(f"{name}: {json.dumps(value)}")
    return 0

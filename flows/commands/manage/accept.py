"""`make accept STAGE=x`: take a change of code that keeps the bytes, without running the stage.

DVC runs a stage again when a file that it depends on changed. After a rename or a mended
comment the outputs would come out the same; this records them under the new code. A training
that was cut off goes on under the new code in the same way.
"""

import subprocess
import sys

from flows.dvc.repair import repair
from gptmill.records import content_hash
from tasks.frame import resume
from tasks.project.environment import ROOT
from tasks.project.graph import check_inputs, locked_outputs, one_stage


def main(arguments: list[str]) -> int:
    """Record a stage's present outputs as made by its present code and params."""
    stage = one_stage(arguments)
    repair()
    resume.claim(stage)
    resume.clean()  # a training that is in the outputs already is none to go on with
    adopted = resume.adopt(resume.training(stage, check_inputs(stage)))
    if adopted is not None:
        print(adopted)
        return 0
    recorded = locked_outputs(stage)
    if not recorded:
        raise ValueError(f"dvc.lock has no record of {stage}: `make {stage}` makes one")
    for path, value in recorded.items():
        if not (ROOT / path).exists() or content_hash(ROOT / path) != value:
            raise ValueError(f"{path} is not what dvc.lock records: `make {stage}` makes it again")
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "commit", "--force", stage]
    subprocess.run(command, cwd=ROOT, check=True)
    print(f"{stage}: its outputs stand, recorded under the present code and params")
    return 0

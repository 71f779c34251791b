"""`make accept STAGE=x`: accept a code change with unchanged outputs.

DVC runs a stage again when a file among the stage's dependencies has changed. After a rename or
a corrected comment the outputs would have the same bytes. `make accept` records the present
outputs under the new code without running the stage. An interrupted training continues under
the new code in the same way.
"""

from flows.dvc.command import dvc
from flows.dvc.repair import repair
from gptmill.records import content_hash
from tasks.frame import resume, states
from tasks.processes import locks
from tasks.project.environment import ROOT
from tasks.project.graph import check_inputs, locked_outputs, one_stage, stages


def main(arguments: list[str]) -> int:
    """Record a stage's outputs under its present code and params."""
    stage = one_stage(arguments)
    with locks.project(f"make accept STAGE={stage}"):
        accept(stage)
    return 0


def accept(stage: str) -> None:
    """Record the outputs, or let an unfinished training resume, under the present code."""
    repair()
    states.claim(stage)
    resume.clean()  # a training with finished outputs is not a training to resume
    adopted = resume.adopt(resume.training(stage, stages()[stage], check_inputs(stage)))
    if adopted is not None:
        print(adopted)
        return
    recorded = locked_outputs(stage)
    if not recorded:
        raise ValueError(f"dvc.lock has no record of {stage}: run `make {stage}` first")
    for path, value in recorded.items():
        if not (ROOT / path).exists() or content_hash(ROOT / path) != value:
            raise ValueError(f"{path} differs from dvc.lock: run `make {stage}` to rebuild {path}")
    dvc(ROOT, "commit", "--force", stage)
    print(f"{stage}: outputs unchanged, recorded under the present code and params")

"""`make ledger STAGE=x STEP=n`: a training step's documents and rows.

The order of data is a function of the seed and the step, and is recomputed rather than looked
up. With AGAINST=FOLDER, the output folder of a second run, the command prints the first step
with different data in the two runs: training.csv holds a digest of each step's batch.
"""

from pathlib import Path

import pandas as pd

from flows.commands.arguments import named
from gptmill.data.tables import markdown_table
from tasks.project.environment import ROOT
from tasks.project.graph import check_inputs
from tasks.shared.ledger import compare, rows, trained

USAGE = (
    "usage: make ledger STAGE=pretrain STEP=40, or make ledger STAGE=pretrain "
    "AGAINST=other/artifacts/pretrain"
)


def main(arguments: list[str]) -> int:
    """Print a step's rows, or the first differing step."""
    usage = f"{USAGE}; the training stages are {', '.join(trained())}"
    options = named(arguments, ("STAGE", "STEP", "AGAINST"), usage)
    if options.get("STAGE") not in trained() or len(options.keys() & {"STEP", "AGAINST"}) != 1:
        raise ValueError(f"{usage}; given: {' '.join(arguments)}")
    outputs = ROOT / "artifacts" / options["STAGE"]
    if "AGAINST" in options:
        print(compare(outputs, Path(options["AGAINST"])))
        return 0
    if not options["STEP"].isdigit():
        raise ValueError(f"STEP is {options['STEP']!r}; a step is a number, counted from 1")
    check_inputs(options["STAGE"])
    print(markdown_table(pd.DataFrame(rows(options["STAGE"], int(options["STEP"]), outputs))))
    return 0

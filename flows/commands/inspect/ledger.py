"""`make ledger STAGE=x STEP=n`: which documents and rows a training step saw.

The order of data is a function of the seed and the step, so it is made again rather than
looked up. With AGAINST=FOLDER, another run's output folder, it says from which step on the
two saw other data: training.csv holds a digest of each step's batch.
"""

from pathlib import Path

import pandas as pd

from gptmill.data.tables import markdown_table
from tasks.frame.ledger import compare, rows, trained
from tasks.project.environment import ROOT
from tasks.project.graph import check_inputs


def main(arguments: list[str]) -> int:
    """Print one step's rows, or the first step that differs from another run's."""
    words = [word.split("=", 1) for word in arguments]
    given = {word[0]: word[1] for word in words if len(word) == 2 and word[1]}
    if given.get("STAGE") not in trained() or len(given.keys() & {"STEP", "AGAINST"}) != 1:
        raise ValueError(
            "make ledger STAGE=pretrain STEP=40, or STAGE=pretrain "
            "AGAINST=other/artifacts/pretrain; "
            f"the stages that train are {', '.join(trained())}; given: {' '.join(arguments)}"
        )
    outputs = ROOT / "artifacts" / given["STAGE"]
    if "AGAINST" in given:
        print(compare(outputs, Path(given["AGAINST"])))
        return 0
    if not given["STEP"].isdigit():
        raise ValueError(f"STEP is {given['STEP']!r}; it is a number, counted from 1")
    check_inputs(given["STAGE"])
    print(markdown_table(pd.DataFrame(rows(given["STAGE"], int(given["STEP"]), outputs))))
    return 0

"""`make show STAGE=instruct`: rows of the current data as tokens, with the counted marked.

A token counted in the loss is green and underlined. Without colours (a file, a pipe, NO_COLOR)
bars separate the tokens, and double brackets enclose the counted. The command reads the inputs of
the stage, and works before any training. ROW=n shows a single row, PART=test another part.
"""

import os
import sys

from flows.commands.arguments import named
from gptmill.data.parts import PARTS
from gptmill.finetuning.marking import bracketed, coloured
from tasks.frame.run import Inputs
from tasks.frame.stage import load
from tasks.project.graph import check_inputs

ROWS = 3
USAGE = (
    "usage: make show STAGE=instruct, optionally with ROW=17 (a number from 1) and "
    f"PART={' or '.join(PARTS)}"
)


def main(arguments: list[str]) -> int:
    """Print rows of a part."""
    options = named(arguments, ("STAGE", "PART", "ROW"), USAGE)
    part, row = options.get("PART", PARTS[0]), options.get("ROW", "")
    is_row = row.isdecimal() or not row
    if options.get("STAGE") != "instruct" or part not in PARTS or not is_row:
        raise ValueError(f"{USAGE}; given: {' '.join(arguments)}")
    check_inputs("instruct")
    params = load("instruct").params()
    in_colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for number, tokens in params.marked(Inputs("instruct"), part, int(row) if row else None, ROWS):
        counted = sum(is_counted for _, is_counted in tokens)
        print(f"{part} row {number}: {len(tokens):,} tokens, {counted:,} counted in the loss")
        print(f"{coloured(tokens) if in_colour else bracketed(tokens)}\n")
    return 0

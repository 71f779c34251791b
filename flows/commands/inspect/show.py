"""`make show STAGE=instruct`: rows of the current data as tokens, with the counted marked.

A token counted in the loss is green and underlined. Without colours (a file, a pipe, NO_COLOR)
bars separate the tokens, and double brackets enclose the counted. The command reads the inputs of
the stage, and works before any training. ROW=n shows a single row, PART=test another part.
"""

import os
import sys

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
    words = [word.partition("=")[::2] for word in arguments]
    options = {name: value for name, value in words if value}
    part, row = options.get("PART", PARTS[0]), options.get("ROW", "")
    known = set(options) <= {"STAGE", "PART", "ROW"} and part in PARTS
    if options.get("STAGE") != "instruct" or not known or not (row.isdecimal() or not row):
        raise ValueError(f"{USAGE}; given: {' '.join(arguments)}")
    check_inputs("instruct")
    params = load("instruct").params()
    in_colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for number, tokens in params.marked(Inputs("instruct"), part, int(row) if row else None, ROWS):
        counted = sum(is_counted for _, is_counted in tokens)
        print(f"{part} row {number}: {len(tokens):,} tokens, {counted:,} counted in the loss")
        print(f"{coloured(tokens) if in_colour else bracketed(tokens)}\n")
    return 0

"""split: labelled texts, instructions -> artifacts/split (train, validation, test of each)."""

import pandas as pd
from pydantic import Field

from gptmill.data.parts import PARTS, Fractions
from gptmill.data.row_files import instruction_records, read_instructions, read_labelled
from gptmill.data.splits import split_instructions, split_labelled
from gptmill.files import write_csv, write_json
from gptmill.origins import write_origins
from tasks.frame.run import Metrics, Run
from tasks.frame.stage import Section, stage


class Parts(Section):
    """The files to split, and the share of each part."""

    labelled: str = Field(description="CSV file with the columns label,text")
    labelled_fractions: Fractions
    instructions: str = Field(description="JSON list of {instruction, input, output, kind}")
    instructions_fractions: Fractions
    near_duplicates: float = Field(
        ge=0.5, le=1, description="similarity of rows that stay in the same part"
    )


@stage
def split(params: Parts, run: Run) -> Metrics:
    """Remove duplicates and split the groups of near-duplicates; later stages read the parts."""
    labelled_rows = read_labelled(run.path(params.labelled))
    instruction_rows = read_instructions(run.path(params.instructions))
    threshold, seed = params.near_duplicates, run.seed
    labelled = split_labelled(
        labelled_rows, params.labelled_fractions, near_duplicates=threshold, seed=seed
    )
    instructions = split_instructions(
        instruction_rows, params.instructions_fractions, near_duplicates=threshold, seed=seed
    )
    for name, path in (("labelled", params.labelled), ("instructions", params.instructions)):
        (run.out / name).mkdir()
        write_origins(run.out / name / "origins.json", run.origins(path.removeprefix("data/")))
    for part in PARTS:
        write_csv(run.out / "labelled" / f"{part}.csv", labelled.parts[part])
        rows = instruction_records(instructions.parts[part])
        write_json(run.out / "instructions" / f"{part}.json", rows)
    run.show("labels by part", _counts(labelled.parts, "label"))
    run.show("kinds of instruction by part", _counts(instructions.parts, "kind"))
    counts = {"labelled": labelled.counts, "instructions": instructions.counts}
    for name, near in (("labelled texts", labelled.near), ("instructions", instructions.near)):
        if len(near):
            run.show(f"near-duplicates among {name}", near)
    run.show("rows and duplicates", pd.DataFrame(counts).rename_axis("count").reset_index())
    return {f"{name}_{key}": value for name, c in counts.items() for key, value in c.items()}


def _counts(parts: dict[str, pd.DataFrame], column: str) -> pd.DataFrame:
    counts = {part: table[column].value_counts() for part, table in parts.items()}
    return pd.DataFrame(counts).fillna(0).astype(int).rename_axis(column).reset_index()

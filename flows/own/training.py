"""The training ahead on a user's own data: params scaled with the data, and updates in words.

Fine-tuning counts in epochs: fewer rows give fewer updates. Small data gets more epochs, up to
MOST_EPOCHS, until the updates are FEWEST: the default data gives about as many. Pretraining counts
in steps: steps that read the text more often than MOST_READ times are lowered. Data never lowers
epochs nor raises steps, so that values chosen by the user stay.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.own.data import Entry
from flows.sweeps.params import Changes
from gptmill.data.documents import read_documents
from gptmill.data.row_files import read_instructions, read_labelled
from tasks.project import graph

FEWEST = 60
"""Updates of a fine-tuning."""
MOST_EPOCHS = 10
MOST_READ = 16
"""Epochs of pretraining: further reading teaches little (https://arxiv.org/abs/2305.16264)."""
BYTES_PER_TOKEN = 4
"""Of English text; `make tokenize` counts."""


def ahead(root: Path, entry: Entry) -> tuple[Changes, list[str]]:
    """Return changes of params.yaml that suit an entry's data, and the training in words."""
    params = graph.read_yaml(root / "params.yaml")
    if entry.kind == "TEXT":
        return _pretraining(root, params)
    if entry.kind == "LABELLED":
        counts = list(read_labelled(root / entry.path)["label"].value_counts())
        share = params["split"]["labelled_fractions"]["train"]
        stages = {
            stage: share * _balanced(counts, params[stage]["balance"])
            for stage in ("lora", "classify")
        }
    else:
        n_rows = len(read_instructions(root / entry.path))
        stages = {"instruct": params["split"]["instructions_fractions"]["train"] * n_rows}
    changes: Changes = {}
    lines = []
    for stage, rows in stages.items():
        changed, line = _epochs(stage, params[stage], max(1, round(rows)))
        changes |= changed
        lines.append(line)
    return changes, lines


def _balanced(counts: list[int], balance: str) -> int:
    """Return the rows after balancing."""
    largest = {"undersample": min(counts), "oversample": max(counts)}
    return len(counts) * largest[balance] if balance in largest else sum(counts)


def _epochs(stage: str, section: Mapping[str, Any], rows: int) -> tuple[Changes, str]:
    """Return more epochs for few rows, and a line on the training."""
    updates, present = math.ceil(rows / section["batch_size"]), section["epochs"]
    epochs = max(present, min(MOST_EPOCHS, math.ceil(FEWEST / updates)))
    words = f"  {stage} trains about {rows:,} rows, epochs: {epochs}, updates: {epochs * updates:,}"
    if epochs == present:
        return {}, words
    return {
        f"{stage}.epochs": epochs
    }, f"{words}; {stage}.epochs was {present}, {present * updates:,} updates"


def _pretraining(root: Path, params: Mapping[str, Any]) -> tuple[Changes, list[str]]:
    """Return fewer steps for little text, and a line on the training."""
    size = sum(document.size for document in read_documents(root / "data" / "text"))
    share = 1 - params["tokenize"]["validation_fraction"]
    tokens = max(1, round(size * share / BYTES_PER_TOKEN))
    batch, present = params["pretrain"]["batch_tokens"], params["pretrain"]["steps"]
    steps = min(present, math.ceil(MOST_READ * tokens / batch))
    words = (
        f"  pretrain takes {steps:,} steps of {batch:,} tokens and reads about {tokens:,} tokens "
        f"{steps * batch / tokens:,.2g} times"
    )
    if steps == present:
        return {}, [words]
    return {"pretrain.steps": steps}, [f"{words}; pretrain.steps was {present:,}, too many"]

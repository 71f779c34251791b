"""The model cards of all checkpoints that stages write.

A card has no time, machine path or commit, so that equal inputs give equal bytes. `gptmill export`
copies the card and adds the commit.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from gptmill.checkpoint.model_card import Card, Task, write_card
from gptmill.files import sha256
from gptmill.origins import Origin, read_origins
from tasks.frame.run import Inputs

CLASSIFIER = (
    "Telling apart the classes that are named in config.json, in texts like those it was trained "
    "on.",
    "Trained on one small labelled set; what lies outside of it gets a class and a probability "
    "all the same. Look at artifacts/evaluate for its errors and intervals.",
)
# summary, intended use, limits
TEXTS: Mapping[str, tuple[str, str, str]] = {
    "pretrain": (
        "A GPT trained from random weights on the text of this project's data/text.",
        "Learning how such a model is made, and a base for fine-tuning.",
        "It continues text in the manner of what it read, true or not, and follows no "
        "instructions.",
    ),
    "load_gpt2": (
        "The language model that fine-tuning starts from, read from the files below.",
        "A base for fine-tuning.",
        "What was not known when its weights were made it does not know; biases of its own "
        "training data are in it. Weights from a 4-bit file are those after rounding.",
    ),
    "classify": ("A classifier of texts: a head, and the last layers of the base.", *CLASSIFIER),
    "lora": ("A classifier of texts: low-rank additions, merged into the base.", *CLASSIFIER),
    "instruct": (
        "An assistant: the base, fine-tuned on instructions and answers.",
        "Answering short instructions of the kinds that it was trained on, in its chat template.",
        "Answers may be false and are not checked; nothing was done to make it safe. Look at "
        "artifacts/evaluate for how often it is right.",
    ),
}


def stage_card(
    stage: str,
    folder: Path,
    *,
    read: Mapping[str, Path],
    origins: Sequence[Origin],
    metrics: Mapping[str, float | int | str],
    base: str | None = None,
    licence: str | None = None,
) -> None:
    """Write the card of a stage's checkpoint in `folder`; `origins` are the raw data of `read`."""
    summary, intended_use, limits = TEXTS[stage]
    task: Task = "text-classification" if stage in ("classify", "lora") else "text-generation"
    card = Card(
        name=f"gptmill {stage}",
        task=task,
        summary=summary,
        intended_use=intended_use,
        limits=limits,
        base=base,
        licence=licence,
        read={name: f"sha256:{sha256(path)}" for name, path in read.items()},
        origins=tuple(origins),
        metrics=metrics,
    )
    write_card(folder, card)


def tuned_card(
    stage: str, folder: Path, run: Inputs, rows: Path, metrics: Mapping[str, float | int | str]
) -> None:
    """Write the card of a model fine-tuned on `rows`, a file that `split` wrote."""
    stage_card(
        stage,
        folder,
        read={f"{rows.parent.name}_{rows.name}": rows},
        origins=[
            *read_origins(run.input("load_gpt2") / "origins.json"),
            *read_origins(rows.parent / "origins.json"),
        ],
        metrics=metrics,
        base="artifacts/load_gpt2",
    )

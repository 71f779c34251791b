"""The model cards of all checkpoints that stages write.

A card has no time, machine path or commit, so that equal inputs give equal bytes. `gptmill export`
copies the card and adds the commit.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from gptmill.checkpoint.model_card import Card, Task, write_card
from gptmill.origins import Origin, read_origins
from tasks.frame.run import Inputs
from tasks.project.hashes import known

CLASSIFIER = (
    "Sorting texts similar to the training set into the classes in config.json.",
    "Trained on a small labelled set. A text of another kind gets a class and a probability too. "
    "artifacts/evaluate lists errors and intervals.",
)
# summary, intended use, limits
TEXTS: Mapping[str, tuple[str, str, str]] = {
    "pretrain": (
        "A GPT trained from random weights on the text in this project's data/text.",
        "Learning how language models are made, and a base for fine-tuning.",
        "The model continues text in the style of the training text, true or not, and follows no "
        "instructions.",
    ),
    "continued": (
        "The weights below, trained further on the text in this project's data/text.",
        "Continuing text in the style of the training text, and a base for fine-tuning.",
        "The model may have lost some of what the first weights knew, and has their biases. The "
        "licence of the first weights holds for this model: data/manifest/weights.json names it.",
    ),
    "load_gpt2": (
        "The base model of all fine-tuning, loaded from the files below.",
        "A base for fine-tuning.",
        "The model knows nothing newer than the training data, and has the biases of the training "
        "data. Weights from a 4-bit file are rounded.",
    ),
    "classify": ("A text classifier: a head, and fine-tuned last layers of the base.", *CLASSIFIER),
    "lora": ("A text classifier: low-rank adapters, merged into the base.", *CLASSIFIER),
    "instruct": (
        "An assistant: the base, fine-tuned on instructions and answers.",
        "Answering short instructions of the trained kinds, in the model's chat template.",
        "Answers may be false and are not checked, and the model had no safety training. "
        "artifacts/evaluate shows the share of correct answers.",
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
    continued = stage == "pretrain" and base is not None
    summary, intended_use, limits = TEXTS["continued" if continued else stage]
    task: Task = "text-classification" if stage in ("classify", "lora") else "text-generation"
    card = Card(
        name=f"gptmill {stage}",
        task=task,
        summary=summary,
        intended_use=intended_use,
        limits=limits,
        base=base,
        licence=licence,
        read={name: f"sha256:{known().sha256(path)}" for name, path in read.items()},
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
        read={f"{rows.parent.name}/{rows.name}": rows},
        origins=[
            *read_origins(run.input("load_gpt2") / "origins.json"),
            *read_origins(rows.parent / "origins.json"),
        ],
        metrics=metrics,
        base="artifacts/load_gpt2",
    )

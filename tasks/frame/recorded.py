"""Parts of the stages' outputs that MLflow gets, by stage or file."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.tracking.models import ServedKind

MEASURED_ON = {
    "pretrain": "artifacts/tokenize",
    "lora": "artifacts/split/labelled",
    "classify": "artifacts/split/labelled",
    "instruct": "artifacts/split/instructions",
}
"""The dep behind the figures of a stage that makes a model."""
MODELS: Mapping[str, tuple["ServedKind", str]] = {
    "pretrain": ("generator", "."),
    "lora": ("classifier", "merged"),
    "classify": ("classifier", "."),
    "instruct": ("assistant", "."),
}
"""The kind of model that a stage makes, and the model's folder in the output."""
CURVES = {
    "train_loss": "train/loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "val_loss": "val/loss",
    "val_accuracy": "val/accuracy",
}
"""The metric behind each column of training.csv and evaluations.csv."""
TABLES = ("predictions.csv", "answers.json", "general_answers.csv")
"""Outputs with a row for each test row, which MLflow shows for several runs side by side."""
JUDGED = (
    *((stage, f"{stage}_", dataset) for stage, dataset in MEASURED_ON.items()),
    ("instruct", "general_assistant_", "data/questions"),
    ("pretrain", "other_pretrain_", "data/questions"),
)
"""The figures of `evaluate` by model: the model's stage, the prefix, and the dep behind them."""

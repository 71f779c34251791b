"""Training a classifier, with or without adapters: rows, training, predictions."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field

from gptmill.checkpoint.hf_config import read_config
from gptmill.data.batching import Indices, RowOrder
from gptmill.data.parts import PARTS
from gptmill.evaluation.estimates import Estimate, mean, wilson
from gptmill.files import write_csv
from gptmill.finetuning.classification import (
    CLASSES,
    Balance,
    LabelledRows,
    balanced,
    batch,
    count_parameters,
    encode_rows,
    measure,
    predict,
    row_losses,
)
from gptmill.model.gpt import GPTClassifier
from gptmill.tokenizer.tokenizer import Tokenizer
from gptmill.training.plan import WATCHED
from tasks.frame.run import Inputs, Metrics, Run
from tasks.shared.training import TrainingSection, train

DIGITS = 6
"""Decimals of written probabilities; further digits would only show rounding."""


class ClassifierTraining(TrainingSection):
    """The params that both classifier stages have."""

    quality: ClassVar[tuple[str, ...]] = (
        "test_accuracy",
        "validation_accuracy",
        "validation_loss",
    )
    balance: Balance = Field(
        description="classes of the training part: undersampled, oversampled or unchanged"
    )
    epochs: int = Field(gt=0)
    batch_size: int = Field(gt=0)

    def describe_batch(self, inputs: Inputs, number: int) -> list[dict[str, Any]]:
        """Return the rows of labelled/train.csv in a training batch."""
        folder = inputs.input("load_gpt2")
        length = read_config(folder).context_length
        tokenizer = Tokenizer.from_folder(folder)
        data = Labelled.read(inputs.input("split/labelled"), tokenizer, length)
        _, order, kept = order_of(self, inputs, data)
        table = data.tables["train"]
        return [
            {"row": int(row), **table.loc[row, ["label", "text"]].to_dict()}
            for row in kept[order.rows(number)]
        ]


@dataclass(frozen=True)
class Labelled:
    """The parts of the labelled set, as tables and as rows of ids; classes are sorted."""

    tables: dict[str, pd.DataFrame]
    rows: dict[str, LabelledRows]
    class_names: list[str]
    pad_id: int

    @classmethod
    def read(cls, folder: Path, tokenizer: Tokenizer, context_length: int) -> Self:
        """Read the parts that `split` wrote, and truncate texts to the context length."""
        tables = {
            part: pd.read_csv(folder / f"{part}.csv", dtype=str, keep_default_na=False)
            for part in PARTS
        }
        class_names = sorted(set(tables["train"]["label"]))
        rows = {
            part: encode_rows(
                list(table["text"]),
                list(table["label"]),
                tokenizer=tokenizer,
                context_length=context_length,
                class_names=class_names,
            )
            for part, table in tables.items()
        }
        return cls(tables, rows, class_names, tokenizer.eot_id)


def order_of(
    params: ClassifierTraining, run: Inputs, data: Labelled
) -> tuple[LabelledRows, RowOrder, Indices]:
    """Return the balanced training rows, their order, and their indices before balancing."""
    kept = balanced(data.rows["train"].labels, params.balance, seed=run.seed)
    rows = data.rows["train"].take(kept)
    return rows, RowOrder(rows.lengths, params.batch_size, run.seed), kept


def fit(params: ClassifierTraining, run: Run, model: GPTClassifier, *, data: Labelled) -> Metrics:
    """Fine-tune the unfrozen parameters. Return row counts and validation metrics."""
    rows, order, kept = order_of(params, run, data)
    validation = data.rows["validation"]

    evaluated: dict[float, npt.NDArray[np.float64]] = {}  # probabilities by loss

    def predicted() -> npt.NDArray[np.float64]:
        return _probabilities(params, run, model, data=data, part="validation")

    def evaluate() -> dict[str, float]:
        probabilities = predicted()
        figures = measure(probabilities, validation.labels)
        evaluated[figures[WATCHED]] = probabilities
        return figures

    trained = train(
        run,
        model,
        CLASSES,
        lambda step: batch(rows, order.rows(step), pad_id=data.pad_id),
        plan=params.plan(
            run,
            steps=params.epochs * order.steps_per_epoch,
            evaluate_every=order.steps_per_epoch,
        ),
        evaluate=evaluate,
        describe=partial(params.describe_batch, run),
    )
    n_trainable, n_parameters = count_parameters(model)
    # a resumed training may have made the evaluation of the final weights in an earlier process
    known = evaluated.get(trained.evaluation[WATCHED])
    return {
        "train_rows": len(kept),
        "rows_cut_to_the_context": sum(part.n_cut for part in data.rows.values()),
        "trainable_parameters": n_trainable,
        "parameters": n_parameters,
        "steps": trained.steps,
        "skipped_steps": trained.skipped,
        **_validated(predicted() if known is None else known, validation.labels),
    }


def predict_test(
    params: ClassifierTraining, run: Run, model: GPTClassifier, *, data: Labelled
) -> Metrics:
    """Predict the test part, write predictions.csv, show examples. Return test metrics."""
    rows, table = data.rows["test"], data.tables["test"]
    probabilities = _probabilities(params, run, model, data=data, part="test").round(DIGITS)
    columns = {f"p_{name}": probabilities[:, k] for k, name in enumerate(data.class_names)}
    predicted = [data.class_names[k] for k in probabilities.argmax(axis=1)]
    shown = pd.DataFrame({"text": table["text"], "label": table["label"], "predicted": predicted})
    write_csv(run.out / "predictions.csv", shown.assign(**columns))
    run.show("test rows", shown.head(5))
    run.show("mistakes", shown[shown["label"] != shown["predicted"]].head(5))
    hits = int((probabilities.argmax(axis=1) == rows.labels).sum())
    return {"test_rows": len(table), **_estimate("test_accuracy", wilson(hits, len(table)))}


def _validated(probabilities: npt.NDArray[np.float64], labels: Indices) -> Metrics:
    """Return loss and accuracy on the validation part, each with an interval."""
    hits = int((probabilities.argmax(axis=1) == labels).sum())
    loss = mean(row_losses(probabilities, labels))
    return {
        **_estimate("validation_loss", loss),
        **_estimate("validation_accuracy", wilson(hits, len(labels))),
    }


def _estimate(name: str, estimate: Estimate) -> Metrics:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _probabilities(
    params: ClassifierTraining, run: Run, model: GPTClassifier, *, data: Labelled, part: str
) -> npt.NDArray[np.float64]:
    return predict(
        model,
        data.rows[part].ids,
        batch_size=params.batch_size,
        pad_id=data.pad_id,
        device=run.device().device,
    )

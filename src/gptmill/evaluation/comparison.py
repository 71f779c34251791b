"""The tables of the stage `evaluate` on classifiers: models beside their baselines."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from gptmill.checkpoint.checkpoint import load_classifier
from gptmill.evaluation.classifier import (
    bag_of_words_probabilities,
    f1_difference,
    majority_probabilities,
    roc_curve,
    score_classifier,
)
from gptmill.finetuning.classification import encode, predict
from gptmill.tokenizer.tokenizer import Tokenizer

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

TOLERANCE = 1e-4  # probabilities from a different batch or device differ by rounding


@dataclass(frozen=True)
class Classifiers:
    """Class probabilities of models and baselines on the test rows.

    The baselines are fitted on all training rows, even where a stage balanced the training rows.
    """

    class_names: list[str]
    positive: int  # the class with the fewest training rows
    texts: list[str]
    actual: Counts  # (N,)
    probabilities: dict[str, Floats]  # (N, K) each

    @classmethod
    def read(cls, labelled: Path, predictions: Mapping[str, Path]) -> Self:
        """Load labelled rows and the stages' predictions, and add baselines."""
        train, test = (
            pd.read_csv(labelled / f"{part}.csv", dtype=str, keep_default_na=False)
            for part in ("train", "test")
        )
        class_names = sorted(set(train["label"]))
        fitted = _class_indices(train["label"], class_names)
        texts = list(test["text"])
        predicted = {
            model: _read_predictions(path, test, class_names) for model, path in predictions.items()
        }
        words = bag_of_words_probabilities(list(train["text"]), fitted, texts)
        majority = majority_probabilities(fitted, len(test), len(class_names))
        return cls(
            class_names,
            int(np.bincount(fitted, minlength=len(class_names)).argmin()),
            texts,
            _class_indices(test["label"], class_names),
            {**predicted, "bag_of_words": words, "majority": majority},
        )

    @property
    def rarest(self) -> str:
        """Return the name of the positive class."""
        return self.class_names[self.positive]

    def check(self, model: str, folder: Path, *, rows: int, device: str) -> None:
        """Predict some test rows again and compare the probabilities.

        The model comes from a saved folder and must be the scored model. Raises ValueError where
        the class names or the probabilities differ.
        """
        network, class_names = load_classifier(folder)
        tokenizer = Tokenizer.from_folder(folder)
        count = min(rows, len(self.texts))
        indices = np.linspace(0, len(self.texts) - 1, count).astype(np.int64)
        texts = [self.texts[index] for index in indices]
        ids, _ = encode(texts, tokenizer, network.config.context_length)
        network = network.to(device)
        repeated = predict(network, ids, batch_size=64, pad_id=tokenizer.eot_id, device=device)
        expected = self.probabilities[model][indices]
        if class_names != self.class_names or np.abs(repeated - expected).max() > TOLERANCE:
            raise ValueError(
                f"{folder} does not predict the values in predictions.csv of the stage {model}: "
                "the folder and the file come from different runs; "
                f"delete artifacts/{model} and run the stage again"
            )

    def score(self, *, resamples: int, seed: int) -> pd.DataFrame:
        """Score each model on the test rows.

        With two classes, all metrics except accuracy are for the rarest class. With more classes,
        these metrics are means over the classes. `f1_gain` is F1 minus the bag of words', on the
        same rows.
        """
        positive = self.positive if len(self.class_names) == 2 else None
        scores = {
            model: score_classifier(
                self.actual, probabilities, positive=positive, resamples=resamples, seed=seed
            )
            for model, probabilities in self.probabilities.items()
        }
        gains = {
            model: f1_difference(
                self.actual,
                probabilities,
                self.probabilities["bag_of_words"],
                positive=positive,
                resamples=resamples,
                seed=seed,
            )
            for model, probabilities in self.probabilities.items()
        }
        table = pd.DataFrame(
            [
                {"model": model, **_flat(asdict(score) | {"f1_gain": asdict(gains[model])})}
                for model, score in scores.items()
            ]
        )
        chance = scores["majority"].accuracy
        return table.assign(beats_majority=table["accuracy"] > chance.high)

    def confusions(self) -> dict[str, pd.DataFrame]:
        """Return each model's actual and predicted class per test row."""
        names = np.array(self.class_names)
        return {
            model: pd.DataFrame(
                {"actual": names[self.actual], "predicted": names[probabilities.argmax(axis=1)]}
            )
            for model, probabilities in self.probabilities.items()
        }

    def roc_curves(self) -> dict[str, pd.DataFrame]:
        """Return each model's ROC curve, rarest class against the rest."""
        is_rarest = self.actual == self.positive
        return {
            model: roc_curve(is_rarest, probabilities[:, self.positive])
            for model, probabilities in self.probabilities.items()
        }


def _flat(figures: Mapping[str, Any]) -> dict[str, float]:
    """Return figures as columns.

    An estimate becomes three columns: the value under the metric's name, then low and high.
    """
    flat: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            flat |= {
                name: value["value"],
                f"{name}_low": value["low"],
                f"{name}_high": value["high"],
            }
        else:
            flat[name] = value
    return flat


def _class_indices(labels: "pd.Series[str]", class_names: Sequence[str]) -> Counts:
    return np.array([class_names.index(label) for label in labels], dtype=np.int64)


def _read_predictions(path: Path, test: pd.DataFrame, class_names: Sequence[str]) -> Floats:
    table = pd.read_csv(path, dtype={"text": str, "label": str}, keep_default_na=False)
    columns = [f"p_{name}" for name in class_names]
    expected = ["text", "label", "predicted", *columns]
    assert list(table.columns) == expected, f"{path} must have the columns {expected}"
    rows = (table["label"].equals(test["label"]), table["text"].equals(test["text"]))
    assert all(rows), f"{path} does not cover the test rows"
    return table[columns].to_numpy(dtype=np.float64)

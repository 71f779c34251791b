"""The tables of the stage `evaluate`: models beside their baselines.

The models are language models and classifiers.
"""

import filecmp
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from gptmill.checkpoint.checkpoint import load_causal_lm, load_classifier
from gptmill.data.batching import by_length, pad
from gptmill.data.token_file import TokenFile
from gptmill.evaluation.classifier import (
    bag_of_words_probabilities,
    f1_difference,
    majority_probabilities,
    roc_curve,
    score_classifier,
)
from gptmill.evaluation.language_model import (
    bits_per_byte,
    cut,
    token_nats,
    token_sizes,
)
from gptmill.evaluation.ngrams import fit_bigram
from gptmill.finetuning.classification import encode, predict
from gptmill.generation.quantization import quantize
from gptmill.model.objectives import IGNORE
from gptmill.tokenizer.tokenizer import Tokenizer

Ids = npt.NDArray[np.integer]
Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

TOKENS_AT_ONCE = 512  # fastest on a CPU: the logits of more tokens outgrow the CPU's caches
BASE_ROWS = 4  # windows in a batch for a different base
TOLERANCE = 1e-4  # probabilities from a different batch or device differ by rounding


def score_language_models(
    tokenized: Path, checkpoint: Path, base: Path, *, windows: int, device: str
) -> pd.DataFrame:
    """Score the pretrained model, a bigram and a unigram.

    All models are scored on the same validation tokens, and the `base` of fine-tuning too, where
    the base is a different model. The base may have a different vocabulary: the nats spent on the
    same text are then divided by the same number of tokens. Raises ValueError where the checkpoint
    and the token files come from different tokenizers.
    """
    train = TokenFile.open(tokenized / "train.bin")
    validation = TokenFile.open(tokenized / "validation.bin")
    model = load_causal_lm(checkpoint)
    if model.config.vocab_size < train.vocab_size:
        raise ValueError(
            f"{checkpoint} knows {model.config.vocab_size:,} ids, but {tokenized} has up to "
            f"{train.vocab_size:,}: the two come from different tokenizers"
        )
    tokenizer = Tokenizer.from_folder(tokenized / "tokenizer")
    inputs, targets = cut(validation.ids, length=model.config.context_length, limit=windows)
    previous, target_ids = inputs[targets != IGNORE], targets[targets != IGNORE]  # (N,)
    bigram = fit_bigram(np.asarray(train.ids), train.starts, train.vocab_size)
    rows = max(1, TOKENS_AT_ONCE // model.config.context_length)
    nats = {
        "pretrain": token_nats(model, inputs, targets, batch_size=rows, device=device),
        "bigram": bigram.nats(previous, target_ids),
        "unigram": bigram.unigram.nats(target_ids),
    }
    losses = {name: float(values.mean()) for name, values in nats.items()}
    if is_another(base, checkpoint):
        spent = _nats_on_windows(base, tokenizer, inputs, targets, device=device)
        losses["load_gpt2"] = spent / len(target_ids)
    size = int(token_sizes(tokenizer)[target_ids].sum())
    return _language_table(losses, tokens=len(target_ids), size=size)


def is_another(base: Path, checkpoint: Path) -> bool:
    """Return whether fine-tuning started from weights other than `checkpoint`'s."""
    name = "model.safetensors"
    return not filecmp.cmp(base / name, checkpoint / name, shallow=False)


def _nats_on_windows(
    folder: Path, tokenizer: Tokenizer, inputs: Ids, targets: Ids, *, device: str
) -> float:
    """Return a different model's total nats on all targets.

    The model in `folder` reads the text of the targets in the ids of the folder's tokenizer. Each
    window's first input is context for this model too, and `<|endoftext|>` becomes the end id of
    the folder's tokenizer.
    """
    model = quantize(load_causal_lm(folder).to(device), "fp32")
    own = Tokenizer.from_folder(folder)

    def translated(ids: Ids) -> list[int]:
        ends = np.flatnonzero(ids == tokenizer.eot_id)
        parts = [
            own.encode(tokenizer.decode(part[part != tokenizer.eot_id]))
            for part in np.split(ids, ends)
        ]
        return [*parts[0], *(index for part in parts[1:] for index in (own.eot_id, *part))]

    contexts = [translated(row[:1]) for row in inputs]
    target_texts = [translated(row[row != IGNORE]) for row in targets]
    rows = [[*context, *target] for context, target in zip(contexts, target_texts, strict=True)]
    total = 0.0
    for chosen in by_length([len(row) for row in rows], BASE_ROWS):
        ids = pad([rows[k] for k in chosen], own.pad_id).numpy()  # (B, T + 1)
        counted = ids[:, 1:].copy()
        for batch_row, k in enumerate(chosen):
            counted[batch_row, : len(contexts[k]) - 1] = IGNORE
            counted[batch_row, len(rows[k]) - 1 :] = IGNORE
        nats = token_nats(model, ids[:, :-1], counted, batch_size=BASE_ROWS, device=device)
        total += float(nats.sum())
    return total


def _language_table(losses: Mapping[str, float], *, tokens: int, size: int) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "model": model,
                "tokens": tokens,
                "loss": loss,
                "perplexity": math.exp(loss),
                "bits_per_byte": bits_per_byte(loss, tokens=tokens, size=size),
                "nats_below_unigram": losses["unigram"] - loss,
            }
            for model, loss in losses.items()
        ]
    )


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

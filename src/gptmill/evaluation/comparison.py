"""What `evaluate` measures: language models and classifiers beside their baselines, as tables."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from gptmill.checkpoint.checkpoint import load_causal_lm, load_classifier
from gptmill.data.batching import by_length, pad
from gptmill.data.token_file import TokenFile
from gptmill.evaluation.classifier import (
    ClassifierScore,
    bag_of_words_probabilities,
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
from gptmill.files import sha256
from gptmill.finetuning.classification import encode, predict
from gptmill.model.objectives import IGNORE
from gptmill.tokenizer.tokenizer import Tokenizer

Ids = npt.NDArray[np.integer]
Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

TOKENS_AT_ONCE = 512  # fastest on a CPU: more logits than that outgrow its caches
BASE_ROWS = 4  # windows of another base at a time
TOLERANCE = 1e-4  # probabilities from another batch, or another device, differ by rounding


def score_language_models(
    tokenized: Path, checkpoint: Path, base: Path, *, windows: int, device: str
) -> pd.DataFrame:
    """Score the pretrained model, a bigram and a unigram on the same validation tokens.

    So is the `base` of fine-tuning, where it is another model. It may have another vocabulary:
    what it spends on the same text is shared out over the same tokens.
    """
    train = TokenFile.open(tokenized / "train.bin")
    validation = TokenFile.open(tokenized / "validation.bin")
    model = load_causal_lm(checkpoint)
    if model.config.vocab_size < train.vocab_size:
        raise ValueError(
            f"{checkpoint} knows {model.config.vocab_size:,} ids and {tokenized} holds up to "
            f"{train.vocab_size:,}: they come from different tokenizers"
        )
    tokenizer = Tokenizer.from_folder(tokenized / "tokenizer")
    inputs, targets = cut(validation.ids, length=model.config.context_length, limit=windows)
    previous, wanted = inputs[targets != IGNORE], targets[targets != IGNORE]  # (N,)
    bigram = fit_bigram(np.asarray(train.ids), train.starts, train.vocab_size)
    rows = max(1, TOKENS_AT_ONCE // model.config.context_length)
    nats = {
        "pretrain": token_nats(model, inputs, targets, batch_size=rows, device=device),
        "bigram": bigram.nats(previous, wanted),
        "unigram": bigram.unigram.nats(wanted),
    }
    losses = {name: float(each.mean()) for name, each in nats.items()}
    if is_another(base, checkpoint):
        spent = _nats_on_windows(base, tokenizer, inputs, targets, device=device)
        losses["load_gpt2"] = spent / len(wanted)
    size = int(token_sizes(tokenizer)[wanted].sum())
    return _language_table(losses, tokens=len(wanted), size=size)


def is_another(base: Path, checkpoint: Path) -> bool:
    """Say whether fine-tuning started from other weights than those of `checkpoint`."""
    return sha256(base / "model.safetensors") != sha256(checkpoint / "model.safetensors")


def _nats_on_windows(
    folder: Path, tokenizer: Tokenizer, inputs: Ids, targets: Ids, *, device: str
) -> float:
    """Return what the model in `folder` spends on the text of all targets, in its own ids.

    Each window's first input is context there too, and `<|endoftext|>` becomes its own end.
    """
    model, own = load_causal_lm(folder), Tokenizer.from_folder(folder)

    def translated(ids: Ids) -> list[int]:
        ends = np.flatnonzero(ids == tokenizer.eot_id)
        parts = [
            own.encode(tokenizer.decode(part[part != tokenizer.eot_id]))
            for part in np.split(ids, ends)
        ]
        return [*parts[0], *(index for part in parts[1:] for index in (own.eot_id, *part))]

    known = [translated(row[:1]) for row in inputs]
    wanted = [translated(row[row != IGNORE]) for row in targets]
    rows = [[*before, *after] for before, after in zip(known, wanted, strict=True)]
    total = 0.0
    for chosen in by_length([len(row) for row in rows], BASE_ROWS):
        ids = pad([rows[k] for k in chosen], own.pad_id).numpy()  # (B, T + 1)
        counted = ids[:, 1:].copy()
        for place, k in enumerate(chosen):
            counted[place, : len(known[k]) - 1] = IGNORE
            counted[place, len(rows[k]) - 1 :] = IGNORE
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
    """Class probabilities on the test rows, of the trained models and of the baselines.

    The baselines are fitted on all training rows, also where a stage balanced its own.
    """

    class_names: list[str]
    positive: int  # the class with the fewest training rows
    texts: list[str]
    actual: Counts  # (N,)
    probabilities: dict[str, Floats]  # (N, K) each

    @classmethod
    def read(cls, labelled: Path, predictions: Mapping[str, Path]) -> Self:
        """Read labelled rows and the predictions that stages made, and add the baselines."""
        train, test = (
            pd.read_csv(labelled / f"{part}.csv", dtype=str, keep_default_na=False)
            for part in ("train", "test")
        )
        class_names = sorted(set(train["label"]))
        fitted = _places(train["label"], class_names)
        texts = list(test["text"])
        read = {model: _read(path, test, class_names) for model, path in predictions.items()}
        words = bag_of_words_probabilities(list(train["text"]), fitted, texts)
        majority = majority_probabilities(fitted, len(test), len(class_names))
        return cls(
            class_names,
            int(np.bincount(fitted, minlength=len(class_names)).argmin()),
            texts,
            _places(test["label"], class_names),
            {**read, "bag_of_words": words, "majority": majority},
        )

    @property
    def rarest(self) -> str:
        """Return the name of the positive class."""
        return self.class_names[self.positive]

    def check(self, model: str, folder: Path, *, rows: int, device: str) -> None:
        """Predict some test rows again from a saved folder; it must be the one that was scored."""
        network, class_names = load_classifier(folder)
        tokenizer = Tokenizer.from_folder(folder)
        count = min(rows, len(self.texts))
        places = np.linspace(0, len(self.texts) - 1, count).astype(np.int64)
        texts = [self.texts[place] for place in places]
        ids, _ = encode(texts, tokenizer, network.config.context_length)
        network = network.to(device)
        found = predict(network, ids, batch_size=64, pad_id=tokenizer.eot_id, device=device)
        expected = self.probabilities[model][places]
        if class_names != self.class_names or np.abs(found - expected).max() > TOLERANCE:
            raise ValueError(
                f"{folder} does not predict what predictions.csv of the stage {model} says: one "
                f"of them comes from another run; delete artifacts/{model} and make it again"
            )

    def score(self, *, resamples: int, seed: int) -> pd.DataFrame:
        """Score each model; what is not plain accuracy is about the rarest of two classes.

        With more than two classes it is the mean over them.
        """
        positive = self.positive if len(self.class_names) == 2 else None
        scores = {
            model: score_classifier(
                self.actual, probabilities, positive=positive, resamples=resamples, seed=seed
            )
            for model, probabilities in self.probabilities.items()
        }
        table = pd.DataFrame([{"model": model, **_flat(score)} for model, score in scores.items()])
        chance = scores["majority"].accuracy
        return table.assign(beats_majority=table["accuracy"] > chance.high)

    def confusions(self) -> dict[str, pd.DataFrame]:
        """Return, for each model, the actual and the predicted class of every test row."""
        names = np.array(self.class_names)
        return {
            model: pd.DataFrame(
                {"actual": names[self.actual], "predicted": names[probabilities.argmax(axis=1)]}
            )
            for model, probabilities in self.probabilities.items()
        }

    def roc_curves(self) -> dict[str, pd.DataFrame]:
        """Return each model's ROC curve for the rarest class against the others."""
        is_it = self.actual == self.positive
        return {
            model: roc_curve(is_it, probabilities[:, self.positive])
            for model, probabilities in self.probabilities.items()
        }


def _flat(score: ClassifierScore) -> dict[str, float]:
    """Return a score as columns: an estimate is its value under its name, then low and high."""
    flat: dict[str, float] = {}
    for name, value in asdict(score).items():
        if isinstance(value, dict):
            flat |= {
                name: value["value"],
                f"{name}_low": value["low"],
                f"{name}_high": value["high"],
            }
        else:
            flat[name] = value
    return flat


def _places(labels: "pd.Series[str]", class_names: Sequence[str]) -> Counts:
    return np.array([class_names.index(label) for label in labels], dtype=np.int64)


def _read(path: Path, test: pd.DataFrame, class_names: Sequence[str]) -> Floats:
    table = pd.read_csv(path, dtype={"label": str}, keep_default_na=False)
    columns = [f"p_{name}" for name in class_names]
    assert list(table.columns) == ["label", *columns], f"{path} has columns of its own"
    assert list(table["label"]) == list(test["label"]), f"{path} is about other rows"
    return table[columns].to_numpy(dtype=np.float64)

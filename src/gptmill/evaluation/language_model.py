"""Losses of language models, per token and per byte, and the models of a run side by side.

Losses per byte are comparable across vocabularies.
"""

import filecmp
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F

from gptmill.checkpoint.checkpoint import load_causal_lm
from gptmill.data.batching import by_length, pad
from gptmill.data.token_file import TokenFile
from gptmill.evaluation.estimates import bootstrap
from gptmill.evaluation.ngrams import fit_bigram
from gptmill.evaluation.paired import Figure, columns, compare, ratio, resample
from gptmill.evaluation.perplexity import sliding_window_nats
from gptmill.generation.quantization import quantize
from gptmill.model.gpt import GPT
from gptmill.model.objectives import IGNORE
from gptmill.tokenizer.tokenizer import Tokenizer

Ids = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

TOKENS_AT_ONCE = 512  # fastest on a CPU: the logits of more tokens outgrow the CPU's caches
BASE_ROWS = 4  # windows in a batch for a different base
BITS = {"bits_per_byte": Figure("bits", "bytes", less_is_better=True)}


def cut(ids: Ids, *, length: int, limit: int) -> tuple[Ids, Ids]:
    """Cut a text into windows that do not overlap.

    Every id but the first is a target. Returns inputs and targets, both (W, length) int64; targets
    past the end of the text are IGNORE. A `limit` above 0 keeps at most `limit` windows, evenly
    spaced.
    """
    starts = np.arange(0, len(ids) - 1, length)
    if 0 < limit < len(starts):
        starts = starts[np.linspace(0, len(starts) - 1, limit).astype(np.int64)]
    positions = starts[:, None] + np.arange(length)  # (W, length)
    last = len(ids) - 1
    inputs = np.asarray(ids[np.minimum(positions, last)], dtype=np.int64)
    targets = np.asarray(ids[np.minimum(positions + 1, last)], dtype=np.int64)
    return inputs, np.where(positions + 1 > last, IGNORE, targets)


@torch.inference_mode()
def token_nats(model: GPT, inputs: Ids, targets: Ids, *, batch_size: int, device: str) -> Floats:
    """Return -ln p of every target that is not IGNORE.

    Shapes: inputs (W, T), targets (W, T) -> (N,), row by row. Computed in float32 on every
    device, to make scores from different machines comparable.
    """
    model = model.to(device).eval()
    losses = []
    for start in range(0, len(inputs), batch_size):
        rows = slice(start, start + batch_size)
        logits = model(torch.from_numpy(inputs[rows]).to(device))  # (B, T, V)
        target_ids = torch.from_numpy(targets[rows]).to(device)  # (B, T)
        nats = F.cross_entropy(logits.flatten(0, 1), target_ids.flatten(), reduction="none")
        losses.append(nats[target_ids.flatten() != IGNORE].double().cpu().numpy())
    return np.concatenate(losses)


def token_sizes(tokenizer: Tokenizer) -> Counts:
    """Return the number of text bytes of each id, (V,).

    Special tokens count as zero bytes.
    """
    sizes = np.array([len(tokenizer.token_bytes(index)) for index in range(tokenizer.n_vocab)])
    sizes[list(tokenizer.special_ids.values())] = 0
    return sizes


def bits_per_byte(nats_per_token: float, *, tokens: int, size: int) -> float:
    """Return the bits spent on each byte of a text.

    The text has `size` bytes, spelled by `tokens` ids. Bits per byte compare models with different
    vocabularies; nats per token do not.
    """
    return nats_per_token / math.log(2) * tokens / size


@dataclass(frozen=True)
class LanguageScores:
    """The losses of a run's language models on the same validation tokens."""

    table: pd.DataFrame
    """A row per model."""
    windows: Mapping[str, pd.DataFrame]
    """The bits and bytes of each window: of `pretrain`, and of the `start` of its training."""
    other: Mapping[str, pd.DataFrame]
    """The bits and bytes of each other text, of both models; empty without a start."""

    def gains(self, *, resamples: int, seed: int) -> dict[str, pd.DataFrame]:
        """Return bits per byte of `pretrain` minus those of `start`, on windows and other texts.

        The intervals are a paired bootstrap over the windows, or over the texts. Empty without a
        start.
        """
        pair = ("pretrain", "start")
        return {
            name: compare(rows, pair, BITS, resamples=resamples, seed=seed).tail(1)
            for name, rows in (("continued_gain", self.windows), ("continued_other", self.other))
            if "start" in rows
        }

    def other_table(self, *, resamples: int, seed: int) -> pd.DataFrame:
        """Return each model's bits per byte of the other texts, with a bootstrap interval."""
        rows = []
        for model, texts in self.other.items():
            draws = resample(len(texts), resamples, seed)
            bits = bootstrap(ratio(texts, BITS["bits_per_byte"], draws))
            rows.append({"model": model, **columns("bits_per_byte", bits)})
        return pd.DataFrame(rows)


def score_language_models(
    tokenized: Path,
    checkpoint: Path,
    base: Path,
    *,
    start: GPT | None = None,
    other: Sequence[str] = (),
    length: int | None = None,
    windows: int,
    device: str,
) -> LanguageScores:
    """Score the pretrained model, a bigram and a unigram.

    All models are scored on the same validation tokens, and the `base` of fine-tuning too, where
    the base is a different model. The base may have a different vocabulary: the nats spent on the
    same text are then divided by the same number of tokens. `start` is the model that pretraining
    went on from, with the checkpoint's vocabulary; both read the `other` texts too. `length` is
    the ids in a window, by default the checkpoint's context. Raises ValueError where the checkpoint
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
    length = model.config.context_length if length is None else length
    inputs, targets = cut(validation.ids, length=length, limit=windows)
    previous, target_ids = inputs[targets != IGNORE], targets[targets != IGNORE]  # (N,)
    bigram = fit_bigram(np.asarray(train.ids), train.starts, train.vocab_size)
    rows = max(1, TOKENS_AT_ONCE // length)
    models = {"pretrain": model} if start is None else {"pretrain": model, "start": start}
    nats = {
        name: token_nats(scored, inputs, targets, batch_size=rows, device=device)
        for name, scored in models.items()
    }
    sizes = token_sizes(tokenizer)
    per_window = {name: window_bits(values, targets, sizes) for name, values in nats.items()}
    nats |= {
        "bigram": bigram.nats(previous, target_ids),
        "unigram": bigram.unigram.nats(target_ids),
    }
    losses = {name: float(values.mean()) for name, values in nats.items()}
    if is_another(base, checkpoint):
        spent = _nats_on_windows(base, tokenizer, inputs, targets, device=device)
        losses["load_gpt2"] = spent / len(target_ids)
    size = int(sizes[target_ids].sum())
    others = {} if start is None else models
    return LanguageScores(
        _language_table(losses, tokens=len(target_ids), size=size),
        per_window,
        {name: text_bits(scored, tokenizer, other, length) for name, scored in others.items()},
    )


def text_bits(model: GPT, tokenizer: Tokenizer, texts: Sequence[str], length: int) -> pd.DataFrame:
    """Return the bits and the bytes of each text, read after the end of a document.

    Every id of a text is predicted; windows of `length` ids do not overlap.
    """
    ids = [[tokenizer.eot_id, *tokenizer.encode(text)] for text in texts]
    nats = [sliding_window_nats(model, row, context_length=length, stride=length) for row in ids]
    size = [len(text.encode()) for text in texts]
    return pd.DataFrame({"kind": "texts", "bits": np.array(nats) / math.log(2), "bytes": size})


def window_bits(nats: Floats, targets: Ids, sizes: Counts) -> pd.DataFrame:
    """Return the bits and the text bytes of each window.

    Shapes: nats (N,) of the targets that are not IGNORE, targets (W, T), sizes (V,).
    """
    counted = targets != IGNORE
    window = np.nonzero(counted)[0]  # (N,)
    n = len(targets)
    bits = np.bincount(window, nats, minlength=n) / math.log(2)
    size = np.bincount(window, sizes[targets[counted]], minlength=n)
    return pd.DataFrame({"kind": "windows", "bits": bits, "bytes": size})


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

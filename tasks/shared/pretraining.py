"""Params of pretraining, whole windows per step, and the first weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, model_validator

from gptmill.checkpoint.hf_config import SpecialIds
from gptmill.formats.importing import load_model
from gptmill.model.gpt import GPT, SIZES, GPTConfig
from gptmill.tokenizer.tokenizer import Tokenizer
from tasks.frame.stage import Section
from tasks.shared.training import TrainingSection


class Shape(Section):
    """A custom size, in place of a name."""

    emb_dim: int = Field(gt=0)
    n_layers: int = Field(gt=0)
    n_heads: int = Field(gt=0)


class PretrainingSection(TrainingSection):
    """The params of pretraining: the model, and the tokens per step.

    Weights in `start` have a shape, biases and a context length of their own.
    """

    start: str = Field(description="random, or a folder below data/weights")

    shape: str | Shape
    drop_rate: float = Field(ge=0, lt=1)
    qkv_bias: bool
    tie_weights: bool
    batch_tokens: int = Field(gt=0, description="read in a step: whole windows")

    @model_validator(mode="after")
    def check_shape(self) -> "PretrainingSection":
        """Refuse an unknown name, and a width that the heads do not divide."""
        if isinstance(self.shape, str) and self.shape not in SIZES:
            raise ValueError(
                f"shape is {self.shape!r}; allowed are {', '.join(SIZES)}, or emb_dim, n_layers "
                "and n_heads of your own"
            )
        self.model(vocab_size=1, context_length=1)
        return self

    def model(self, *, vocab_size: int, context_length: int) -> GPTConfig:
        """Return the config of the model."""
        shape = SIZES[self.shape]._asdict() if isinstance(self.shape, str) else dict(self.shape)
        return GPTConfig(
            **shape,
            vocab_size=vocab_size,
            context_length=context_length,
            drop_rate=self.drop_rate,
            qkv_bias=self.qkv_bias,
            tie_weights=self.tie_weights,
        )

    def batch_size(self, context_length: int, *, ranks: int = 1) -> int:
        """Return the windows of a step, shared among `ranks`.

        Raises ValueError for a fraction of a window, and for fewer windows than ranks.
        """
        windows, rest = divmod(self.batch_tokens, context_length)
        if rest:
            raise ValueError(
                f"params.yaml: pretrain.batch_tokens is {self.batch_tokens:,} but must be a "
                f"multiple of sample.windows.max_length, {context_length:,}; the nearest are "
                f"{max(windows, 1) * context_length:,} and {(windows + 1) * context_length:,}"
            )
        if windows < ranks:
            raise ValueError(
                f"params.yaml: pretrain.batch_tokens is {self.batch_tokens:,}, {windows} windows "
                f"of {context_length:,} for {ranks} processes: raise the value to at least "
                f"{ranks * context_length:,}, or lower pretrain.devices"
            )
        return windows


@dataclass(frozen=True)
class Start:
    """The first weights of a training, with everything that goes on unchanged."""

    model: GPT
    chat_template: str | None = None
    ids: SpecialIds | None = None
    files: Sequence[Path] = ()
    """The files of the weights."""


def load_start(weights: Path, tokenized: Path, *, length: int, drop_rate: float) -> Start:
    """Load the first weights of a training on the ids in `tokenized`, in windows of `length`.

    Raises ValueError for a classifier, for ids of a different vocabulary, and for windows beyond
    the context of the weights.
    """
    folder = tokenized / "tokenizer"
    loaded = load_model(str(weights), otherwise=folder, classifiers=False, drop_rate=drop_rate)
    model = loaded.model
    assert isinstance(model, GPT), "classifiers are refused"
    if loaded.tokenizer.fingerprint != Tokenizer.from_folder(folder).fingerprint:
        raise ValueError(
            f"the text has ids of a vocabulary other than that of {weights}: set "
            "tokenize.vocabulary in params.yaml to the folder of the weights"
        )
    context = model.config.context_length
    if length > context:
        raise ValueError(
            f"params.yaml: sample.windows.max_length is {length:,}, but {weights} reads at most "
            f"{context:,} tokens: lower sample.windows.max_length to at most {context:,}"
        )
    return Start(model, loaded.chat_template, loaded.ids, loaded.files)

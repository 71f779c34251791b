"""Params of pretraining: the model's size, and whole windows per step."""

from pydantic import Field, model_validator

from gptmill.model.gpt import SIZES, GPTConfig
from tasks.frame.stage import Section
from tasks.shared.training import TrainingSection


class Shape(Section):
    """A custom size, in place of a name."""

    emb_dim: int = Field(gt=0)
    n_layers: int = Field(gt=0)
    n_heads: int = Field(gt=0)


class PretrainingSection(TrainingSection):
    """The params of a training from random weights: the model, and the tokens per step."""

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

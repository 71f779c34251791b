"""pretrain: artifacts/tokenize, artifacts/sample -> artifacts/pretrain (a GPT from scratch)."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, StringConstraints, model_validator

from gptmill.checkpoint import save_causal_lm
from gptmill.device import Device
from gptmill.files import write_text
from gptmill.generation import GenerationConfig, generate
from gptmill.model import GPT, SIZES, GPTConfig
from gptmill.tokenizer import Tokenizer
from gptmill.tokens import TokenFile
from gptmill.training import Batch, OptimizerConfig, Step, language_loss, mean_language_loss, train
from gptmill.windows import WindowIndex
from tasks._stage import Metrics, Run, Section, stage
from tasks._training import follow

ROWS = 16  # windows a forward pass of an evaluation; bounds memory


Prompt = Annotated[str, StringConstraints(min_length=1)]


class Shape(Section):
    """A size of one's own, in place of a name."""

    emb_dim: int = Field(gt=0)
    n_layers: int = Field(gt=0)
    n_heads: int = Field(gt=0)


class Pretrain(Section):
    """params.yaml `pretrain:`; the context length is `sample`'s."""

    size: str | Shape
    drop_rate: float = Field(ge=0, lt=1)
    qkv_bias: bool
    tie_weights: bool
    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0, description="the peak")
    optimizer: OptimizerConfig
    evaluate_every: int = Field(gt=0, description="steps")
    evaluate_windows: int = Field(gt=0, description="of the validation part, while training")
    final_windows: int = Field(gt=0, description="of the validation part, at the end")
    prompts: list[Prompt]
    generation: GenerationConfig

    @model_validator(mode="after")
    def check_shape(self) -> "Pretrain":
        """Stop at an unknown name, and where heads do not divide the width."""
        if isinstance(self.size, str) and self.size not in SIZES:
            raise ValueError(
                f"size is {self.size!r}; allowed are {', '.join(SIZES)}, or emb_dim, n_layers and "
                "n_heads of your own"
            )
        self.model(vocab_size=1, context_length=1)
        return self

    def model(self, *, vocab_size: int, context_length: int) -> GPTConfig:
        """Return the whole config of the model."""
        shape = SIZES[self.size]._asdict() if isinstance(self.size, str) else dict(self.size)
        return GPTConfig(
            **shape,
            vocab_size=vocab_size,
            context_length=context_length,
            drop_rate=self.drop_rate,
            qkv_bias=self.qkv_bias,
            tie_weights=self.tie_weights,
        )


@dataclass(frozen=True)
class Texts:
    """The two parts of the text as windows, and what turns ids into text."""

    tokenizer: Tokenizer
    train_tokens: TokenFile
    train: WindowIndex
    validation_tokens: TokenFile
    validation: WindowIndex

    @classmethod
    def open(cls, tokenized: Path, sampled: Path) -> "Texts":
        """Open what `tokenize` and `sample` wrote."""
        return cls(
            tokenizer=Tokenizer.from_folder(tokenized / "tokenizer"),
            train_tokens=TokenFile.open(tokenized / "train.bin"),
            train=WindowIndex.load(sampled, "train"),
            validation_tokens=TokenFile.open(tokenized / "validation.bin"),
            validation=WindowIndex.load(sampled, "validation"),
        )

    def batch(self, step: int, *, batch_size: int, seed: int) -> Batch:
        """Return the ids and targets of a training step."""
        rows = self.train.rows_at(step, batch_size=batch_size, seed=seed)
        return self.train.batch(self.train_tokens, rows)

    def validation_loss(self, model: GPT, device: Device, *, windows: int) -> float:
        """Return the loss on so many windows, spread evenly over the validation part."""
        rows = self.validation.spread(windows)
        batches = self.validation.batches(self.validation_tokens, rows, batch_size=ROWS)
        return mean_language_loss(model, batches, device)


@stage
def pretrain(params: Pretrain, run: Run) -> Metrics:
    """Train a GPT from random weights on the training windows."""
    device = run.device()
    texts = Texts.open(run.input("tokenize"), run.input("sample"))
    config = params.model(
        vocab_size=texts.tokenizer.n_vocab, context_length=texts.train.config.max_length
    )
    model = GPT(config, generator=torch.Generator().manual_seed(run.seed))
    steps = train(
        model,
        language_loss,
        lambda step: texts.batch(step, batch_size=params.batch_size, seed=run.seed),
        steps=params.steps,
        learning_rate=params.learning_rate,
        optimizer=params.optimizer,
        device=device,
        seed=run.seed,
        evaluate=lambda: {
            "val/loss": texts.validation_loss(model, device, windows=params.evaluate_windows)
        },
        evaluate_every=params.evaluate_every,
    )
    samples: list[str] = []
    table = follow(run, sampled(steps, model, texts.tokenizer, into=samples, params=params))
    write_text(run.out / "samples.md", "\n".join(samples))
    run.show("samples", samples[-1])
    save_causal_lm(run.out, model, texts.tokenizer)
    run.log_model("generator", run.out)
    loss = texts.validation_loss(model, device, windows=params.final_windows)
    return {
        "validation_loss": loss,
        "validation_perplexity": math.exp(loss),
        "validation_windows": len(texts.validation.spread(params.final_windows)),
        "training_loss": float(table["train_loss"].tail(params.evaluate_every).mean()),
        "tokens": params.steps * params.batch_size * config.context_length,
        "epochs": params.steps * params.batch_size / len(texts.train),
        "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def sampled(
    steps: Iterable[Step],
    model: GPT,
    tokenizer: Tokenizer,
    *,
    into: list[str],
    params: Pretrain,
) -> Iterator[Step]:
    """Pass the steps on; after each evaluation, add what the model writes by now, as markdown."""
    prompts = [tokenizer.encode(prompt) for prompt in params.prompts]
    for step in steps:
        if step.evaluation:
            answers = generate(
                model, prompts, params.generation, stop_id=tokenizer.eot_id, seed=step.step
            )
            texts = [
                f"> **{prompt}**{tokenizer.decode(ids)}".replace("\n", "  \n> ")
                for prompt, ids in zip(params.prompts, answers, strict=True)
            ]
            into.append("\n\n".join([f"## After {step.step:,} steps", *texts, ""]))
        yield step

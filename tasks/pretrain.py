"""pretrain: artifacts/tokenize, artifacts/sample -> artifacts/pretrain (a GPT from scratch)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, StringConstraints, model_validator

from gptmill.checkpoint.checkpoint import save_causal_lm
from gptmill.data.token_file import TokenFile
from gptmill.data.windows import WindowIndex
from gptmill.device import Device, RuntimeConfig, keep_freed_memory, processes
from gptmill.files import write_text
from gptmill.generation.decoder import GenerationConfig, generate
from gptmill.model.gpt import GPT, SIZES, GPTConfig
from gptmill.model.objectives import LANGUAGE, Batch, mean_language_loss
from gptmill.origins import read_origins
from gptmill.tokenizer.tokenizer import Tokenizer
from gptmill.training.flops import parameters, train_flops_per_token
from tasks.frame.run import Inputs, Metrics, Run
from tasks.frame.stage import Section, stage
from tasks.shared.cards import stage_card
from tasks.shared.training import TrainingSection, train

ROWS = 16  # windows a forward pass of an evaluation; bounds memory


Prompt = Annotated[str, StringConstraints(min_length=1)]


class Shape(Section):
    """A size of one's own, in place of a name."""

    emb_dim: int = Field(gt=0)
    n_layers: int = Field(gt=0)
    n_heads: int = Field(gt=0)


class Pretrain(TrainingSection):
    """params.yaml `pretrain:`; the context length is `sample`'s."""

    devices: Literal["auto"] | Annotated[int, Field(gt=0)]
    """Processes that train together on a machine: auto takes one a GPU, else one."""
    shard: bool
    """Share weights and optimizer out to them (FSDP), where one has no room for all (DDP)."""
    shape: str | Shape
    drop_rate: float = Field(ge=0, lt=1)
    qkv_bias: bool
    tie_weights: bool
    steps: int = Field(gt=0)
    batch_tokens: int = Field(gt=0, description="read in a step: whole windows")
    evaluate_every: int = Field(gt=0, description="steps")
    sample_every: int = Field(ge=0, description="steps; 0: never")
    evaluate_windows: int = Field(gt=0, description="of the validation part, while training")
    final_windows: int = Field(gt=0, description="of the validation part, at the end")
    prompts: list[Prompt]
    generation: GenerationConfig

    @model_validator(mode="after")
    def check_shape(self) -> "Pretrain":
        """Stop at an unknown name, and where heads do not divide the width."""
        if isinstance(self.shape, str) and self.shape not in SIZES:
            raise ValueError(
                f"shape is {self.shape!r}; allowed are {', '.join(SIZES)}, or emb_dim, n_layers "
                "and n_heads of your own"
            )
        self.model(vocab_size=1, context_length=1)
        return self

    parallel: ClassVar[bool] = True

    def processes(self, runtime: RuntimeConfig) -> int:
        """Return how many processes the stage trains in on this machine."""
        return processes(runtime, self.devices)

    def batch_size(self, context_length: int, *, ranks: int = 1) -> int:
        """Return the windows of a step, which so many ranks share.

        Raises ValueError where its tokens are no whole windows, or too few to share.
        """
        windows, rest = divmod(self.batch_tokens, context_length)
        if rest:
            raise ValueError(
                f"params.yaml: pretrain.batch_tokens is {self.batch_tokens:,}; it must be a "
                f"multiple of sample.windows.max_length, {context_length:,}; the nearest are "
                f"{max(windows, 1) * context_length:,} and {(windows + 1) * context_length:,}"
            )
        if windows < ranks:
            raise ValueError(
                f"params.yaml: pretrain.batch_tokens is {self.batch_tokens:,}, {windows} windows "
                f"of {context_length:,}, but {ranks} processes share them: raise it to at least "
                f"{ranks * context_length:,}, or lower pretrain.devices"
            )
        return windows

    def model(self, *, vocab_size: int, context_length: int) -> GPTConfig:
        """Return the whole config of the model."""
        shape = SIZES[self.shape]._asdict() if isinstance(self.shape, str) else dict(self.shape)
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
    def of(cls, run: Inputs) -> "Texts":
        """Open what `tokenize` and `sample` wrote."""
        tokenized, sampled = run.input("tokenize"), run.input("sample")
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

    def describe(self, step: int, *, batch_size: int, seed: int) -> list[dict[str, Any]]:
        """Return which windows a training step reads: where they begin, of which documents."""
        rows = self.train.rows_at(step, batch_size=batch_size, seed=seed)
        return [
            {
                "window": int(row),
                "offset": int(self.train.offsets[row]),
                "documents": self.train_tokens.documents_in(
                    int(self.train.offsets[row]), self.train.config.max_length
                ),
            }
            for row in rows
        ]

    def validation_loss(self, model: GPT, device: Device, *, windows: int) -> float:
        """Return the loss on so many windows, spread evenly over the validation part."""
        rows = self.validation.spread(windows)
        batches = self.validation.batches(self.validation_tokens, rows, batch_size=ROWS)
        return mean_language_loss(model, batches, device)


@stage
def pretrain(params: Pretrain, run: Run) -> Metrics:
    """Train a GPT from random weights on the training windows."""
    texts = Texts.of(run)
    length = texts.train.config.max_length
    rows = params.batch_size(length, ranks=run.world.size)
    config = params.model(vocab_size=texts.tokenizer.n_vocab, context_length=length)
    flops = train_flops_per_token(config, length)
    tokens = params.steps * params.batch_tokens
    device = run.device(flops=flops * tokens, one_shape=True)
    keep_freed_memory()
    model = GPT(config, generator=torch.Generator().manual_seed(run.seed))
    trained = train(
        run,
        model,
        LANGUAGE,
        partial(texts.batch, batch_size=rows, seed=run.seed),
        plan=params.plan(
            run,
            steps=params.steps,
            evaluate_every=params.evaluate_every,
            sample_every=params.sample_every,
        ),
        evaluate=lambda: {
            "val/loss": texts.validation_loss(model, device, windows=params.evaluate_windows)
        },
        describe=lambda number: ledger(params, run)(number),
        sample=partial(written, model, texts.tokenizer, params),
        flops_per_token=flops,
    )
    write_text(run.out / "samples.md", "\n".join(trained.samples))
    run.show("samples", (trained.samples or ["none: pretrain.sample_every is 0"])[-1])
    save_causal_lm(run.out, model, texts.tokenizer)
    loss = texts.validation_loss(model, device, windows=params.final_windows)
    metrics: Metrics = {
        "validation_loss": loss,
        "validation_perplexity": math.exp(loss),
        "validation_windows": len(texts.validation.spread(params.final_windows)),
        "training_loss": float(trained.table["train_loss"].tail(params.evaluate_every).mean()),
        "steps": trained.steps,
        "skipped_steps": trained.skipped,
        "tokens": trained.steps * params.batch_tokens,
        "epochs": trained.steps * rows / len(texts.train),
        "n_parameters": parameters(config).total,
        "training_petaflop": flops * trained.steps * params.batch_tokens / 1e15,
    }
    text = run.input("tokenize")
    stage_card(
        "pretrain",
        run.out,
        read={"train.bin": text / "train.bin"},
        origins=read_origins(text / "origins.json"),
        metrics=metrics,
    )
    run.log_model("generator", run.out)
    return metrics


def ledger(params: Pretrain, run: Inputs) -> Callable[[int], list[dict[str, Any]]]:
    """Return what says which windows a batch holds: where they begin, and of which documents."""
    texts = Texts.of(run)
    rows = params.batch_size(texts.train.config.max_length)
    return partial(texts.describe, batch_size=rows, seed=run.seed)


def written(model: GPT, tokenizer: Tokenizer, params: Pretrain, step: int) -> str:
    """Return what the model writes after so many steps, as markdown."""
    prompts = [tokenizer.encode(prompt) for prompt in params.prompts]
    answers = generate(model, prompts, params.generation, stop_ids={tokenizer.eot_id}, seed=step)
    texts = [
        f"> **{prompt}**{tokenizer.decode(ids)}".replace("\n", "  \n> ")
        for prompt, ids in zip(params.prompts, answers, strict=True)
    ]
    return "\n\n".join([f"## After {step:,} steps", *texts, ""])

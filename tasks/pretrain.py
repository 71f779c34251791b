"""pretrain: artifacts/tokenize, artifacts/sample, perhaps weights -> artifacts/pretrain (a GPT)."""

import math
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, StringConstraints

from gptmill.checkpoint.checkpoint import save_causal_lm
from gptmill.data.windows import TextWindows
from gptmill.device import RuntimeConfig, keep_freed_memory, processes
from gptmill.files import write_text
from gptmill.generation.decoder import GenerationConfig, generate
from gptmill.model.gpt import GPT
from gptmill.model.objectives import LANGUAGE, mean_language_loss
from gptmill.origins import read_origins
from gptmill.tokenizer.tokenizer import Tokenizer
from gptmill.training.flops import parameters, train_flops_per_token
from tasks.frame.run import Inputs, Metrics, Run
from tasks.frame.stage import stage
from tasks.project.starts import RANDOM
from tasks.shared.cards import stage_card
from tasks.shared.pretraining import PretrainingSection, Start, load_start
from tasks.shared.report import samples_page
from tasks.shared.training import train

ROWS = 16
"""Windows per forward pass of an evaluation; more need more memory."""

Prompt = Annotated[str, StringConstraints(min_length=1)]


class Pretrain(PretrainingSection):
    """params.yaml `pretrain:`; the context length is `sample`'s, or that of the first weights."""

    parallel: ClassVar[bool] = True
    quality: ClassVar[tuple[str, ...]] = ("validation_loss",)
    devices: Literal["auto"] | Annotated[int, Field(gt=0)]
    """Processes on a machine: auto takes one per GPU, and one without a GPU."""
    shard: bool
    """Shard weights and optimizer (FSDP) rather than replicate them (DDP)."""
    steps: int = Field(gt=0)
    evaluate_every: int = Field(gt=0, description="steps")
    sample_every: int = Field(ge=0, description="steps; 0: never")
    evaluate_windows: int = Field(gt=0, description="of the validation part, while training")
    final_windows: int = Field(gt=0, description="of the validation part, at the end")
    prompts: list[Prompt]
    generation: GenerationConfig

    def processes(self, runtime: RuntimeConfig) -> int:
        """Return the number of training processes on this machine."""
        return processes(runtime, self.devices)

    def describe_batch(self, inputs: Inputs, number: int) -> list[dict[str, Any]]:
        """Return the windows of a training batch: their offsets and documents."""
        windows = open_windows(inputs, "train")
        rows = self.batch_size(windows.length)
        return windows.describe(number, batch_size=rows, seed=inputs.seed)


@stage
def pretrain(params: Pretrain, run: Run) -> Metrics:
    """Train a GPT on the training windows, from random weights or from given ones."""
    windows, validation = open_windows(run, "train"), open_windows(run, "validation")
    tokenizer = Tokenizer.from_folder(run.input("tokenize") / "tokenizer")
    length = windows.length
    rows = params.batch_size(length, ranks=run.world.size)
    start = None if params.start == RANDOM else first_weights(params, run, length)
    if start is None:
        config = params.model(vocab_size=tokenizer.n_vocab, context_length=length)
    else:
        config = start.model.config
    flops = train_flops_per_token(config, length)
    device = run.device(flops=flops * params.steps * params.batch_tokens, one_shape=True)
    keep_freed_memory()
    if start is None:
        model = GPT(config, generator=torch.Generator().manual_seed(run.seed))
    else:
        model = start.model

    def validation_loss(n_windows: int) -> float:
        return mean_language_loss(model, validation.spread(n_windows, batch_size=ROWS), device)

    def sample(step: int) -> str:
        prompts = [tokenizer.encode_prompt(prompt) for prompt in params.prompts]
        ends = {tokenizer.eot_id}
        answers = generate(model, prompts, params.generation, stop_ids=ends, seed=step)
        page = samples_page(params.prompts, [tokenizer.decode(ids) for ids in answers])
        return f"## After {step:,} steps\n\n{page}"

    trained = train(
        run,
        model,
        LANGUAGE,
        partial(windows.batch, batch_size=rows, seed=run.seed),
        plan=params.plan(
            run,
            steps=params.steps,
            evaluate_every=params.evaluate_every,
            sample_every=params.sample_every,
        ),
        evaluate=lambda: {"val/loss": validation_loss(params.evaluate_windows)},
        describe=partial(params.describe_batch, run),
        sample=sample,
        flops_per_token=flops,
    )
    if not run.is_first_rank:  # the first rank has the whole model: it alone saves and reports
        return {}

    write_text(run.out / "samples.md", "\n".join(trained.samples))
    run.show("samples", (trained.samples or ["none: pretrain.sample_every is 0"])[-1])
    template, ids = (None, None) if start is None else (start.chat_template, start.ids)
    save_causal_lm(run.out, model, tokenizer, chat_template=template, ids=ids)
    loss = validation_loss(params.final_windows)
    metrics: Metrics = {
        "validation_loss": loss,
        "validation_perplexity": math.exp(loss),
        "validation_windows": len(validation.index.spread(params.final_windows)),
        "training_loss": float(trained.table["train_loss"].tail(params.evaluate_every).mean()),
        "steps": trained.steps,
        "skipped_steps": trained.skipped,
        "tokens": trained.steps * params.batch_tokens,
        "epochs": trained.steps * rows / len(windows.index),
        "n_parameters": parameters(config).total,
        "training_petaflop": flops * trained.steps * params.batch_tokens / 1e15,
    }
    text = run.input("tokenize")
    read, origins = {"train.bin": text / "train.bin"}, read_origins(text / "origins.json")
    base = None
    if start is not None:
        base = params.start
        metrics |= {"start": base, "window_length": length}
        read |= {path.name: path for path in start.files}
    stage_card("pretrain", run.out, read=read, origins=origins, metrics=metrics, base=base)
    run.log_model("generator", run.out)
    return metrics


def first_weights(params: Pretrain, run: Run, length: int) -> Start:
    """Load the weights in `pretrain.start`."""
    weights, text = run.path(params.start), run.input("tokenize")
    run.log(f"goes on from {params.start}, with the shape and the context of the weights")
    return load_start(weights, text, length=length, drop_rate=params.drop_rate)


def open_windows(inputs: Inputs, part: str) -> TextWindows:
    """Open the windows of a part of the text."""
    return TextWindows.open(inputs.input("tokenize"), inputs.input("sample"), part)

"""Estimate memory, time and disk of pretraining before anything runs.

The plan is params.yaml of this folder, with a preset over it (--config configs/gpu/NAME.yaml), or
another whole file. Memory is that of one device, in GB of 10^9 bytes, counted from shapes. The time
is that of the training steps alone. --adapter estimates LoRA on all linear layers in place of
training all weights.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptmill.cli import options
from gptmill.cli.frame import show

if TYPE_CHECKING:
    from gptmill.cli.estimate.planned import Params

HELP = "memory, time and disk of pretraining, before anything runs"
HERE = "here"
FP32 = 4
LABELS = {
    "weights_bytes": "memory: weights",
    "moments_bytes": "- moments",
    "gradients_bytes": "- gradients",
    "activations_bytes": "- activations",
    "head_bytes": "- logits and head",
    "program_bytes": "- program",
    "peak_bytes": "memory: at the peak",
    "fits": "fits into the GPU",
    "states_bytes": "disk: states",
    "checkpoint_bytes": "disk: checkpoint",
    "seconds": "time",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the plan, the shape, the device and the ways to save memory."""
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="a preset over params.yaml, or a whole file")
    add("--shape", metavar="S", help="gpt2-small ..., or 768x12x12: width, layers, heads (params')")
    add("--device", default=HERE, metavar="GPU", help="H100, A100-80GB, L4 ... (this machine)")
    add("--mfu", type=options.finite, metavar="SHARE", help="share of the peak reached (0.36)")
    add("--micro-batch", type=options.at_least_1, metavar="ROWS", help="rows at once (params')")
    add("--recompute", action="store_true", help="recompute blocks in the backward pass")
    add("--precision", choices=("fp32", "bf16"), help="precision of the products (params')")
    add("--adapter", type=options.at_least_1, metavar="RANK", help="LoRA on all linear layers")
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Estimate and print."""
    if arguments.mfu is not None and not 0 < arguments.mfu <= 1:
        raise ValueError(f"--mfu is {arguments.mfu:g} but must be above 0 and at most 1")
    figures = estimate(arguments)
    if arguments.json:
        show(figures)
        return
    for name, value in figures.items():
        print(f"{LABELS.get(name, name).replace('_', ' '):20} {_shown(name, value)}")


def estimate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures by name."""
    from gptmill.cli.estimate import memory, planned, speed
    from gptmill.training.flops import parameters

    if arguments.device not in (HERE, *speed.GPUS):
        names = ", ".join((HERE, *speed.GPUS))
        raise ValueError(f"--device is {arguments.device!r}; allowed are {names}")
    params = planned.read_params(arguments.config)
    config = planned.model_of(params, arguments.shape)
    runtime = _runtime(params, arguments)
    length = params.sample.windows.max_length
    rows, rest = divmod(params.pretrain.batch_tokens, length)
    if rest or not rows:
        raise ValueError(
            f"pretrain.batch_tokens is {params.pretrain.batch_tokens:,} but must be a multiple of "
            f"sample.windows.max_length, {length:,}"
        )
    reached = speed.speed(arguments.device, runtime, arguments.mfu)
    work = memory.Work(
        config=config,
        rows=rows,
        length=length,
        device=reached.device.device,
        precision=reached.device.precision,
        optimizer=params.pretrain.optimizer.name,
        micro_batch=None if runtime.micro_batch == "auto" else runtime.micro_batch,
        recompute=runtime.recompute,
        adapter=_adapter(arguments.adapter),
    )
    tokens = params.pretrain.steps * params.pretrain.batch_tokens
    flops = memory.flops_per_token(work)
    needed, text = memory.memory(work), planned.tokenized()
    figures: dict[str, Any] = {
        "model": f"{config.n_layers} layers, width {config.emb_dim:,}, {config.vocab_size:,} ids",
        "parameters": parameters(config).total,
        "trained_parameters": memory.trained_parameters(work),
        "tokens": tokens,
        "steps": params.pretrain.steps,
        "rows_of_a_step": rows,
        "rows_at_once": work.together,
        "flops_per_token": flops,
        **({} if text is None else {"epochs": tokens / text}),
        "device": f"{reached.device.model}, {work.precision}",
        **{f"{name}_bytes": value for name, value in asdict(needed).items()},
        **({} if reached.memory is None else {"fits": needed.peak <= reached.memory}),
        "speed": reached.source,
        "seconds": tokens * flops / reached.flops,
        **_disk(params, memory.state_bytes(work), FP32 * parameters(config).total),
    }
    return figures


def _runtime(params: "Params", arguments: argparse.Namespace) -> Any:
    """Return the runtime of params.yaml with the options' values."""
    from dataclasses import replace

    given = {
        "micro_batch": arguments.micro_batch,
        "precision": arguments.precision,
        "recompute": arguments.recompute or None,
    }
    return replace(params.runtime, **{k: v for k, v in given.items() if v is not None})


def _adapter(rank: int | None) -> Any:
    from gptmill.model.lora import LoRAConfig

    if rank is None:
        return None
    return LoRAConfig(rank, rank, 0.0, ("c_attn", "c_proj", "c_fc"))


def _disk(params: "Params", state: int, weights: int) -> dict[str, int]:
    """Return the bytes of the states kept, with one being written, and of the checkpoint."""
    from gptmill.training.plan import Keep
    from gptmill.training.state.store import LARGE

    best: Keep = "best"
    kept = 1 if state > LARGE else params.resume.keep
    best_weights = weights if params.pretrain.stopping.keep == best else 0
    return {"states_bytes": (kept + 1) * state + best_weights, "checkpoint_bytes": weights}


def _shown(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        return f"{value / 1e9:,.2f} GB"
    if name == "seconds":
        return _duration(value)
    if isinstance(value, bool):
        return "yes" if value else "no: lower --micro-batch, or add --recompute"
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def _duration(seconds: float) -> str:
    units = (("days", 86_400), ("hours", 3600), ("minutes", 60))
    for name, length in units:
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {name}"
    return f"{seconds:,.0f} seconds"

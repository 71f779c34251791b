"""The one training loop: pretraining, classification, LoRA and instructions all run it.

Stages differ by model, batches and loss, which they pass in. The loop is a generator of
frozen `Step` records: a task logs them, a test reads them, nothing is printed here.

Everything is a function of numbers: batch and dropout of step s depend on (seed, s) and not
on what ran before, so a later run can go on from a step with no generator state to restore.

Letters: B rows of a batch, T positions, C width, V vocabulary.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from gptmill.device import Device
from gptmill.head_loss import head_loss
from gptmill.model import GPT

IGNORE = -100
"""A target of this value takes no part in the loss."""

Batch = tuple[Tensor, ...]
"""Tensors of one step; the first holds the ids that the model reads, (B, T)."""

Loss = Callable[[nn.Module, Batch], Tensor]
"""Mean loss over a batch's targets; it runs in the device's precision."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (https://arxiv.org/abs/1711.05101) with linear warmup and cosine decay.

    The peak learning rate stands beside this in each stage's section, as the number most
    often turned. `final_learning_rate` and `warmup` are fractions, of the peak and of the
    steps, so that turning the peak or the steps needs no second edit.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    final_learning_rate: float
    warmup: float
    weight_decay: float
    beta_1: float
    beta_2: float
    clip_norm: float

    def __post_init__(self) -> None:
        for name in ("final_learning_rate", "warmup"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it is a fraction, 0 to 1")
        for name in ("beta_1", "beta_2"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"{name} is {value}; allowed is 0 up to, not including, 1")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay is {self.weight_decay}; it must be 0 or more")
        if not self.clip_norm > 0:
            raise ValueError(f"clip_norm is {self.clip_norm}; it must be above 0")


@dataclass(frozen=True)
class Step:
    """What one update did. `step` counts from 1; `loss` is the batch's, before the update."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    """Positions read by the model since the first step, padding included."""
    tokens_per_second: float
    """Of this step alone, evaluation left out."""
    evaluation: dict[str, float] | None
    """What `evaluate` returned, on the steps where it ran."""


def train(
    model: nn.Module,
    loss: Loss,
    batches: Callable[[int], Batch],
    *,
    steps: int,
    learning_rate: float,
    optimizer: OptimizerConfig,
    device: Device,
    seed: int,
    evaluate: Callable[[], dict[str, float]] | None = None,
    evaluate_every: int = 1,
) -> Iterator[Step]:
    """Train `model` in place on the device, yielding after each of the `steps` updates.

    `batches(s)` gives the batch of step s, 0 up to steps - 1, a pure function of s. Only
    parameters that require gradients are trained. `evaluate` runs after every
    `evaluate_every` updates and after the last, with the model in eval mode and without
    gradients. The model is left in eval mode.

    Raises ValueError where the loss or the gradients stop being finite.
    """
    model.to(device.device)
    adamw = _adamw(model, optimizer)
    compiled = torch.compile(loss) if device.compile else loss
    tokens = 0
    for step in range(steps):
        rate = learning_rate_at(step, steps=steps, peak=learning_rate, config=optimizer)
        start = time.perf_counter()
        batch = tuple(tensor.to(device.device) for tensor in batches(step))
        torch.manual_seed(_seed_of_step(seed, step))  # dropout's randomness
        model.train()
        for group in adamw.param_groups:
            group["lr"] = rate
        value = _backward(model, compiled, batch, device=device)
        grad_norm = _apply(adamw, optimizer.clip_norm)
        seconds = time.perf_counter() - start
        _check_finite(value, grad_norm, step + 1, rate)
        tokens += batch[0].numel()
        last = step + 1 == steps
        due = evaluate is not None and (last or (step + 1) % evaluate_every == 0)
        yield Step(
            step=step + 1,
            steps=steps,
            loss=value,
            learning_rate=rate,
            grad_norm=grad_norm,
            tokens=tokens,
            tokens_per_second=batch[0].numel() / seconds,
            evaluation=_evaluated(model, evaluate) if due and evaluate else None,
        )
    model.eval()


def language_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean next-token loss of a batch (ids (B, T), targets (B, T)), nats per token.

    Targets equal to `IGNORE` are left out, and cost nothing at the head.
    """
    assert isinstance(model, GPT)
    ids, targets = batch
    kept = (targets.flatten() != IGNORE).nonzero().squeeze(1)  # (N,)
    hidden = model.hidden(ids).flatten(0, 1).index_select(0, kept)  # (N, C)
    return head_loss(hidden, model.head_weight, targets.flatten()[kept])


@torch.no_grad()
def mean_language_loss(model: nn.Module, batches: Iterable[Batch], device: Device) -> float:
    """Return the loss over all targets of the batches together, nats per token.

    Batches weigh by their targets, not equally, so the result depends on their size only by
    rounding. The caller puts the model in eval mode.
    """
    total, count = 0.0, 0
    for batch in batches:
        ids, targets = (tensor.to(device.device) for tensor in batch)
        n_targets = int((targets != IGNORE).sum())
        with device.autocast():
            total += language_loss(model, (ids, targets)).item() * n_targets
        count += n_targets
    assert count > 0
    return total / count


def learning_rate_at(step: int, *, steps: int, peak: float, config: OptimizerConfig) -> float:
    """Return the rate of update `step`, counted from 0: linear up to `peak`, cosine down.

    The peak is reached with the last warmup step, the final rate with the last step. Cosine
    decay as in https://arxiv.org/abs/1608.03983, without restarts.
    """
    warmup = round(config.warmup * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    final = peak * config.final_learning_rate
    progress = (step - warmup + 1) / (steps - warmup)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))


def _adamw(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Decay matrices only: a decayed norm gain or bias pulls towards nothing useful."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained, "nothing to train: no parameter requires a gradient"
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        betas=(config.beta_1, config.beta_2),
        fused=True,
    )


def _backward(model: nn.Module, loss: Loss, batch: Batch, *, device: Device) -> float:
    with device.autocast():
        value = loss(model, batch)
    value.backward()  # type: ignore[no-untyped-call]
    return value.item()


def _apply(adamw: torch.optim.AdamW, clip_norm: float) -> float:
    """Make one update from the gradients; return their norm before clipping."""
    parameters = [p for group in adamw.param_groups for p in group["params"]]
    grad_norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
    adamw.step()
    adamw.zero_grad(set_to_none=True)
    return grad_norm.item()


def _check_finite(loss: float, grad_norm: float, step: int, rate: float) -> None:
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise ValueError(
            f"training diverged at step {step}: loss {loss}, gradient norm {grad_norm}, learning "
            f"rate {rate:.3g}; lower learning_rate, or lengthen warmup"
        )


@torch.no_grad()
def _evaluated(model: nn.Module, evaluate: Callable[[], dict[str, float]]) -> dict[str, float]:
    model.eval()
    return evaluate()


def _seed_of_step(seed: int, step: int) -> int:
    """Mix seed and step: neighbouring seeds must not share a step's randomness."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)

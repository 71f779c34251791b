"""AdamW and Muon optimizers, and the learning-rate schedule.

Both optimizers are PyTorch's own. This file assigns each parameter to an optimizer, and keeps the
moments of both under the parameters' names, so that a stopped run can resume from the same numbers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from gptmill.device import check_choice

OptimizerName = Literal["adamw", "muon"]
Schedule = Literal["cosine", "linear", "wsd"]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Muon, linear warmup and one of three schedules.

    The peak learning rate is a separate field in each stage's section, as the value most often
    tuned. `final_learning_rate` is a fraction of the peak, `warmup` and `decay` are fractions of
    the steps: changing the peak or the steps needs no second edit. `decay`, the last steps with a
    falling rate in `wsd`, and `muon_momentum` stay in the config even if another schedule or
    optimizer is selected, for the same reason: switching back needs no second edit.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: OptimizerName
    schedule: Schedule
    final_learning_rate: float
    warmup: float
    decay: float
    weight_decay: float
    beta_1: float
    beta_2: float
    clip_norm: float
    """The largest joint norm of all gradients; 0 switches clipping off."""
    muon_momentum: float

    def __post_init__(self) -> None:
        for name, choices in (("name", OptimizerName), ("schedule", Schedule)):
            check_choice(name, getattr(self, name), get_args(choices))
        for name in ("final_learning_rate", "warmup", "decay"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value} but must be a fraction from 0 to 1")
        # the slack is for rounding: 0.1 + 0.7 + 0.2 do not add up to 1 in binary
        if self.schedule == "wsd" and self.warmup + self.decay > 1 + 1e-9:
            raise ValueError(
                f"warmup is {self.warmup} and decay is {self.decay}; with the schedule wsd both "
                "are parts of the same steps: lower warmup or decay until the sum is 1 or less"
            )
        for name in ("beta_1", "beta_2", "muon_momentum"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"{name} is {value} but must be in [0, 1)")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"weight_decay is {self.weight_decay} but must be 0 or more, and finite"
            )
        if not self.clip_norm >= 0:
            raise ValueError(f"clip_norm is {self.clip_norm} but must be 0 or more")


def learning_rate_at(step: int, *, steps: int, peak: float, config: OptimizerConfig) -> float:
    """Return the learning rate of update `step`, counted from 0.

    The rate rises linearly to `peak` with the last warmup step, and falls to the final rate with
    the last step. `cosine` is https://arxiv.org/abs/1608.03983 without restarts, `linear` a
    straight line, and `wsd` holds the peak and falls in a straight line over the last `decay` of
    the steps (https://arxiv.org/abs/2404.06395).
    """
    warmup = round(config.warmup * steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    final = peak * config.final_learning_rate
    left = steps - warmup
    if config.schedule == "cosine":
        progress = (step - warmup + 1) / left
        return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))
    # warmup and decay are rounded separately: the sum may be one step too long
    falling = min(round(config.decay * steps), left) if config.schedule == "wsd" else left
    fallen = step + 1 - (steps - falling)
    if fallen <= 0:
        return peak
    progress = fallen / falling
    return peak * (1 - progress) + final * progress


class Optimizer:
    """AdamW alone, or Muon for block matrices and AdamW elsewhere.

    Muon (https://kellerjordan.github.io/posts/muon/) makes each update of a matrix nearly
    orthogonal. Muon is meant for matrices between hidden states: embeddings, heads and vectors
    stay with AdamW (https://arxiv.org/abs/1711.05101). Muon's updates are scaled to the size of
    AdamW's (https://arxiv.org/abs/2502.16982), so that the same learning rate and weight decay
    fit both.

    Only parameters that require gradients are trained. An update is three calls, `clip`, `step`
    and `zero_grad`: the caller can read the norm in between. The model must be on the final device
    before the optimizer is built, because the moments are kept on the parameters' device.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig):
        self._clip_norm = config.clip_norm or math.inf
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert self._trained, "nothing to train: no parameter requires a gradient"
        use_muon = config.name == "muon"
        hidden = [name for name, p in self._trained.items() if use_muon and _is_hidden(name, p)]
        rest = [p for name, p in self._trained.items() if name not in hidden]
        self._optimizers: list[torch.optim.Optimizer] = []
        if hidden:
            self._optimizers.append(_muon([self._trained[name] for name in hidden], config))
        if rest:
            self._optimizers.append(_adamw(rest, config))
        self._groups = [group for each in self._optimizers for group in each.param_groups]
        self._owners = {
            name: self._optimizers[0 if name in hidden else -1] for name in self._trained
        }

    def clip(self) -> Tensor:
        """Clip all gradients jointly; return the norm before clipping.

        The norm is a tensor on the model's device: reading the value waits for the device.
        """
        parameters = [parameter for group in self._groups for parameter in group["params"]]
        return nn.utils.clip_grad_norm_(parameters, self._clip_norm)

    def step(self, learning_rate: float) -> None:
        """Update the parameters from the current gradients."""
        for group in self._groups:
            group["lr"] = learning_rate
        for optimizer in self._optimizers:
            optimizer.step()

    def zero_grad(self) -> None:
        """Drop the gradients and free the memory."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Return the moments by name, "{parameter}.{key}".

        The tensors are not copied. Before the first step the result is empty. Afterwards every
        parameter has moments: a parameter without any gradient yet has the zeros that its first
        gradient would find.
        """
        if not any(optimizer.state for optimizer in self._optimizers):
            return {}
        return {
            f"{name}.{key}": tensor
            for name, parameter in self._trained.items()
            for key, tensor in (
                self._owners[name].state.get(parameter) or self._blank(name)
            ).items()
        }

    def blank(self) -> list[Tensor]:
        """Return new zero tensors with the shapes of all moments."""
        return [tensor for name in self._trained for tensor in self._blank(name).values()]

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Load copies of the moments returned by `state`.

        An empty state resets the optimizer to before the first step. Raises ValueError, and changes
        nothing, if the tensors do not belong to this model and this optimizer.
        """
        moments = {name: self._blank(name) for name in self._trained} if state else {}
        flat = {f"{name}.{key}": t for name, keys in moments.items() for key, t in keys.items()}
        _check_same(state, flat)
        for name, tensor in flat.items():
            tensor.copy_(state[name])
        for optimizer in self._optimizers:
            optimizer.state.clear()
        for name, tensors in moments.items():
            self._owners[name].state[self._trained[name]] = tensors

    def _blank(self, name: str) -> dict[str, Tensor]:
        """Return a parameter's zero moments, as before a first gradient."""
        like = self._trained[name].detach()
        if isinstance(self._owners[name], torch.optim.Muon):
            return {"momentum_buffer": torch.zeros_like(like)}
        return {
            "step": torch.zeros((), dtype=torch.float32, device=like.device),
            "exp_avg": torch.zeros_like(like),
            "exp_avg_sq": torch.zeros_like(like),
        }


def _is_hidden(name: str, parameter: Tensor) -> bool:
    """Return whether a parameter is a matrix inside a block.

    Matrices inside blocks map hidden states to hidden states.
    """
    return parameter.ndim == 2 and ".h." in f".{name}"


def _muon(parameters: list[nn.Parameter], config: OptimizerConfig) -> torch.optim.Muon:
    return torch.optim.Muon(
        parameters,
        weight_decay=config.weight_decay,
        momentum=config.muon_momentum,
        adjust_lr_fn="match_rms_adamw",
    )


def _adamw(parameters: list[nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """Return AdamW with weight decay for matrices only.

    Decay would pull a norm gain or a bias towards no useful value.
    """
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        betas=(config.beta_1, config.beta_2),
        fused=True,
    )


def _check_same(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise ValueError if names, shapes or types differ.

    The message names the first few differences.
    """
    differences = {
        "missing": [name for name in expected if name not in state],
        "left over": [name for name in state if name not in expected],
        "different": [
            f"{name} is {_kind(state[name])}, expected {_kind(tensor)}"
            for name, tensor in expected.items()
            if name in state and _kind(state[name]) != _kind(tensor)
        ],
    }
    problems = [
        f"{len(names)} {label} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for label, names in differences.items()
        if names
    ]
    if problems:
        raise ValueError(
            f"the optimizer's state does not fit this run: {'; '.join(problems)}; load a state "
            "saved by the same model and the same optimizer, or start from the first step"
        )


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"

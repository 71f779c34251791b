"""Rotary position embeddings: a position turns each pair of a head's features by an angle.

Su et al. 2021, https://arxiv.org/abs/2104.09864. Pairs are (d, d + D / 2), as in Hugging Face's
Llama; GGUF files pair (2d, 2d + 1), and their readers and writers reorder. A scaling reads
contexts longer than those trained on.

Letters: B rows, T positions, H heads, D width of one head.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

ScalingKind = Literal["linear", "yarn", "llama3"]


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How a model reads contexts `factor` times as long as the `original_context_length`.

    `linear` divides every position, https://arxiv.org/abs/2306.15595. `yarn` divides where a
    feature turns less than `beta_slow` times over the original context, leaves it where it
    turns more than `beta_fast` times, and blends in between; its `attention_factor` scales
    queries and keys, None takes 0.1 ln(factor) + 1, https://arxiv.org/abs/2309.00071. `llama3`
    is the same blend as Llama 3.1 has it: `beta_slow` and `beta_fast` are its low and high
    frequency factors.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: ScalingKind
    factor: float
    original_context_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(ScalingKind):
            allowed = ", ".join(get_args(ScalingKind))
            raise ValueError(f"rope scaling kind is {self.kind!r}: allowed are {allowed}")
        if not 1 <= self.factor < math.inf:
            raise ValueError(f"rope scaling factor is {self.factor}: it must be at least 1")
        if self.original_context_length < 1:
            raise ValueError(
                f"original_context_length is {self.original_context_length}: it must be at least 1"
            )
        if not 0 < self.beta_slow < self.beta_fast:
            raise ValueError(
                f"beta_slow is {self.beta_slow}, beta_fast {self.beta_fast}: 0 < slow < fast"
            )

    @property
    def magnitude(self) -> float:
        """Return what queries and keys are multiplied with."""
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> Tensor:
    """Return the angle of one position for each pair of features, (D / 2,) in float32."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    plain = 1 / theta**exponents
    if scaling is None:
        return plain
    slow = plain / scaling.factor
    if scaling.kind == "linear":
        return slow
    kept = _yarn_kept if scaling.kind == "yarn" else _llama3_kept
    share = kept(plain, theta, scaling)
    return slow * (1 - share) + plain * share


def _yarn_kept(plain: Tensor, theta: float, scaling: RopeScaling) -> Tensor:
    """Return how much of each frequency stays: a ramp over the places of the pairs."""
    n_pairs = len(plain)

    def place(turns: float) -> float:
        length = scaling.original_context_length / (turns * 2 * math.pi)
        return n_pairs * math.log(length) / math.log(theta)

    low = max(math.floor(place(scaling.beta_fast)), 0)
    high = min(math.ceil(place(scaling.beta_slow)), 2 * n_pairs - 1)
    span = max(high - low, 0.001)
    return 1 - ((torch.arange(n_pairs, dtype=torch.float32) - low) / span).clamp(0, 1)


def _llama3_kept(plain: Tensor, theta: float, scaling: RopeScaling) -> Tensor:
    """Return how much of each frequency stays: a ramp over how often it turns."""
    turns = scaling.original_context_length * plain / (2 * math.pi)
    return ((turns - scaling.beta_slow) / (scaling.beta_fast - scaling.beta_slow)).clamp(0, 1)


class Rotation:
    """The turns of some positions, made once and used by all layers."""

    def __init__(self, positions: Tensor, angles: Tensor, magnitude: float) -> None:
        """Take positions (T,) or (B, T) and the angles of one position, (D / 2,)."""
        turned = positions[..., None].float() * angles  # (T, D / 2) or (B, T, D / 2)
        if positions.ndim == 2:
            turned = turned[:, None]  # (B, 1, T, D / 2)
        cos, sin = turned.cos() * magnitude, turned.sin() * magnitude
        self._cos = torch.cat([cos, cos], dim=-1)  # (..., T, D)
        self._sin = torch.cat([-sin, sin], dim=-1)

    def __call__(self, x: Tensor) -> Tensor:
        """Turn queries or keys (B, H, T, D); they keep their type."""
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat([second, first], dim=-1)
        return x * self._cos.to(x.dtype) + turned * self._sin.to(x.dtype)

"""Rotary position embeddings: positions rotate pairs of features.

Each position rotates every pair of a head's features by an angle (Su et al. 2021,
https://arxiv.org/abs/2104.09864). Pairs are (d, d + D / 2), as in Hugging Face's Llama; GGUF files
pair (2d, 2d + 1), and GGUF readers and writers reorder the features. Scaling extends the context
beyond the training length.

Letters: B rows, T positions, H heads, D width of one head.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from gptmill.device import check_choice

ScalingKind = Literal["linear", "yarn", "llama3"]


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Scaling to `factor` times the `original_context_length`.

    `linear` divides every position, https://arxiv.org/abs/2306.15595. `yarn` divides positions for
    features with fewer than `beta_slow` turns over the original context, leaves features with more
    than `beta_fast` turns unchanged, and blends in between; `attention_factor` scales queries and
    keys, and None means 0.1 ln(factor) + 1, https://arxiv.org/abs/2309.00071. `llama3` is the same
    blend in the form of Llama 3.1: `beta_slow` and `beta_fast` are the low and high frequency
    factors.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    kind: ScalingKind
    factor: float
    original_context_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        check_choice("rope scaling kind", self.kind, get_args(ScalingKind))
        if not 1 <= self.factor < math.inf:
            raise ValueError(
                f"rope scaling factor is {self.factor} but must be at least 1 and finite"
            )
        if self.original_context_length < 1:
            raise ValueError(
                f"original_context_length is {self.original_context_length} but must be at least 1"
            )
        if not 0 < self.beta_slow < self.beta_fast:
            raise ValueError(
                f"beta_slow is {self.beta_slow} and beta_fast is {self.beta_fast} but must satisfy "
                "0 < beta_slow < beta_fast"
            )

    @property
    def magnitude(self) -> float:
        """Return the factor for queries and keys."""
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> Tensor:
    """Return the angles of all feature pairs, per position.

    The angles are (D / 2,) in float32.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    plain = 1 / theta**exponents
    if scaling is None:
        return plain
    slow = plain / scaling.factor
    if scaling.kind == "linear":
        return slow
    ramp = _yarn_ramp if scaling.kind == "yarn" else _llama3_ramp
    share = ramp(plain, theta, scaling)
    return slow * (1 - share) + plain * share


def _yarn_ramp(plain: Tensor, theta: float, scaling: RopeScaling) -> Tensor:
    """Return the unscaled share of each frequency.

    The share is a ramp over the indices of the pairs.
    """
    n_pairs = len(plain)

    def pair_index(turns: float) -> float:
        length = scaling.original_context_length / (turns * 2 * math.pi)
        return n_pairs * math.log(length) / math.log(theta)

    low = max(math.floor(pair_index(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_index(scaling.beta_slow)), 2 * n_pairs - 1)
    span = max(high - low, 0.001)
    return 1 - ((torch.arange(n_pairs, dtype=torch.float32) - low) / span).clamp(0, 1)


def _llama3_ramp(plain: Tensor, theta: float, scaling: RopeScaling) -> Tensor:
    """Return the unscaled share of each frequency.

    The share is a ramp over the number of turns.
    """
    turns = scaling.original_context_length * plain / (2 * math.pi)
    return ((turns - scaling.beta_slow) / (scaling.beta_fast - scaling.beta_slow)).clamp(0, 1)


class Rotation:
    """Rotations of given positions, computed once for all layers."""

    def __init__(self, positions: Tensor, angles: Tensor, magnitude: float) -> None:
        """Compute the rotations of positions (T,) or (B, T).

        `angles` are the angles of one position, (D / 2,).
        """
        phases = positions[..., None].float() * angles  # (T, D / 2) or (B, T, D / 2)
        if positions.ndim == 2:
            phases = phases[:, None]  # (B, 1, T, D / 2)
        cos, sin = phases.cos() * magnitude, phases.sin() * magnitude
        self._cos = torch.cat([cos, cos], dim=-1)  # (..., T, D)
        self._sin = torch.cat([-sin, sin], dim=-1)

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate queries or keys (B, H, T, D), keeping the dtype."""
        first, second = x.chunk(2, dim=-1)
        swapped = torch.cat([second, first], dim=-1)
        return x * self._cos.to(x.dtype) + swapped * self._sin.to(x.dtype)

"""The FLOPs of training, and the peak FLOP/s of devices.

Their ratio over time is model FLOP utilisation (MFU): PaLM, appendix B,
https://arxiv.org/abs/2204.02311. A multiplication with an addition counts as two FLOPs.

Letters: T positions, C width, L layers, V vocabulary, N weights, G key-value heads, D width of a
head, F width of the feed-forward.
"""

import re
import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from gptmill.device import Precision
from gptmill.model.gpt import GPTConfig

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}

# Outputs, inputs and width of the timed matmuls. A CPU is fastest with operands in its caches, and
# cache sizes vary: GPT-2 small's wide layer, and a cube. A GPU needs large operands.
CPU_SHAPES = ((1024, 768, 3072), (2048, 2048, 2048))
GPU_SHAPES = ((4096, 4096, 4096), (8192, 8192, 8192))


@dataclass(frozen=True)
class Parameters:
    """The number of parameters in each part of a GPT; a tied head has none."""

    token_embedding: int
    positions: int
    attention: int
    feed_forward: int
    norms: int
    head: int

    @property
    def total(self) -> int:
        """Return the size of the model."""
        return self.token_embedding + self.positions + self.non_embedding + self.head

    @property
    def non_embedding(self) -> int:
        """Return the size of the blocks and the last norm."""
        return self.attention + self.feed_forward + self.norms


def parameters(config: GPTConfig) -> Parameters:
    """Count the parameters of `GPT(config)` without building it."""
    width, layers = config.emb_dim, config.n_layers
    table = config.vocab_size * width
    biases = config.has_biases
    attention = _attention_weights(config) + config.qkv_bias * _qkv_width(config) + biases * width
    feed_forward = _feed_forward_weights(config) + biases * (config.ff_dim + width)
    return Parameters(
        token_embedding=table,
        positions=0 if config.rotary else config.context_length * width,
        attention=layers * attention,
        feed_forward=layers * feed_forward,
        norms=(2 * layers + 1) * width * (2 if biases else 1),
        head=0 if config.tie_weights else table,
    )


def _qkv_width(config: GPTConfig) -> int:
    return config.emb_dim + 2 * config.n_kv_heads * config.head_dim


def _attention_weights(config: GPTConfig) -> int:
    """Return the entries of a block's attention matrices: C (C + 2GD) and C^2."""
    return config.emb_dim * (_qkv_width(config) + config.emb_dim)


def _feed_forward_weights(config: GPTConfig) -> int:
    """Return the entries of a block's feed-forward matrices: 2CF, or 3CF with a gate."""
    return (3 if config.gated else 2) * config.emb_dim * config.ff_dim


def train_flops_per_token(config: GPTConfig, length: int) -> int:
    """Return the FLOPs of training per token, in rows of `length` positions: 6N + 12LCT.

    The formula is PaLM's, appendix B. N counts the weights of all matrix products of a position:
    attention's C (C + 2GD) + C^2 and the feed-forward's 2CF (3CF with a gate) in each block, and
    the head's VC, tied or not. Embeddings are looked up; biases and norms are too small to count.
    Each weight costs 2 FLOPs in the forward pass and 4 in the backward pass. 12LCT are attention's
    two products over all T positions: a causal mask needs half of them, but the paper counts all,
    and so figures compare with published ones. Recomputation to save memory does not count:
    utilisation is a property of the model, not of how it is run.
    """
    width, layers = config.emb_dim, config.n_layers
    block = _attention_weights(config) + _feed_forward_weights(config)
    weights = layers * block + config.vocab_size * width
    return 6 * weights + 12 * layers * width * length


class Peak(NamedTuple):
    """NVIDIA's published peak for GPUs with a full name, in torch, that matches the pattern."""

    name: str
    flops: float
    source: str


_PAGE = "https://www.nvidia.com/en-us/data-center"
_AMPERE = (
    "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf"
)
_ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"

# FLOP/s of dense bf16 matmuls with sums in fp32. Rates published only with sparsity are halved. The
# T4 has no bf16: the rate is fp16's. The table has full names only, because the name of a laptop
# chip or a cut-down chip often begins with the desktop chip's, and a MIG slice's with the GPU's.
DATASHEET = (
    Peak(r"NVIDIA B200", 2250e12, f"{_PAGE}/hgx/"),
    Peak(r"NVIDIA H200", 1979e12 / 2, f"{_PAGE}/h200/"),
    Peak(r"NVIDIA H200 NVL", 1671e12 / 2, f"{_PAGE}/h200/"),
    Peak(r"NVIDIA H100 80GB HBM3", 1979e12 / 2, f"{_PAGE}/h100/"),
    Peak(r"NVIDIA H100 NVL", 1671e12 / 2, f"{_PAGE}/h100/"),
    Peak(r"NVIDIA H100 PCIe", 1513e12 / 2, f"{_PAGE}/h100/"),
    Peak(r"(NVIDIA )?A100(-SXM4|-PCIE)?[- ](40|80)GB( PCIe)?", 312e12, f"{_PAGE}/a100/"),
    Peak(r"NVIDIA L40S", 362.05e12, f"{_PAGE}/l40s/"),
    Peak(r"NVIDIA L4", 242e12 / 2, f"{_PAGE}/l4/"),
    Peak(r"NVIDIA A10", 125e12, f"{_PAGE}/products/a10-gpu/"),
    Peak(r"(NVIDIA |Tesla )T4", 65e12, f"{_PAGE}/tesla-t4/"),
    Peak(r"(NVIDIA )?GeForce RTX 4090", 165.2e12, _ADA),
    Peak(r"(NVIDIA )?GeForce RTX 3090", 71e12, _AMPERE),
)


def datasheet_peak(device_name: str) -> float | None:
    """Return the published bf16 FLOP/s of a GPU by its name in torch; None if not listed."""
    peaks = [peak.flops for peak in DATASHEET if re.fullmatch(peak.name, device_name)]
    assert len(peaks) <= 1
    return peaks[0] if peaks else None


@torch.no_grad()
def measured_peak(device: str, precision: Precision, seconds: float = 0.5) -> float:
    """Return the FLOP/s of the fastest matmul within about `seconds`, under torch's settings.

    The figure is a real bound for a training step, unlike a datasheet's rate, which assumes a clock
    that few GPUs sustain. Measuring needs up to 400 MB on a GPU in bf16, twice as much in fp32, and
    50 MB on a CPU, and does not touch the global random state.
    """
    shapes = CPU_SHAPES if device == "cpu" else GPU_SHAPES
    return max(_matmul_rate(device, precision, shape, seconds / len(shapes)) for shape in shapes)


def _matmul_rate(
    device: str, precision: Precision, shape: tuple[int, int, int], seconds: float
) -> float:
    rows, inner, outer = shape
    generator = torch.Generator(device).manual_seed(0)
    # random numbers, because a GPU clocks higher on constants than on real work
    x, weight = (
        torch.randn(size, inner, device=device, dtype=DTYPES[precision], generator=generator)
        for size in (rows, outer)
    )
    _timed(x, weight)  # warm up
    best = _timed(x, weight)
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        best = min(best, _timed(x, weight))
    return 2 * rows * inner * outer / best


def _timed(x: torch.Tensor, weight: torch.Tensor) -> float:
    _wait(x.device)
    start = time.perf_counter()
    F.linear(x, weight)
    _wait(x.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)

"""Memory of a training step, part by part, from shapes alone.

The parts follow the code: weights and moments in fp32 (training/optimizers.py), arrays saved by
autograd for each layer (model/gpt.py, model/attention.py), and the head, which holds at most
LARGEST logits (model/head_loss.py). Small arrays are left out.

Letters: C width, L layers, V vocabulary, P the vocabulary padded, F width of the feed-forward, G
key-value heads, D width of a head, N positions of a forward pass, s bytes of a number in the
precision of the products.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from gptmill.device import Precision
from gptmill.model import attention, head_loss
from gptmill.model.gpt import GPTConfig
from gptmill.model.lora import LoRAConfig
from gptmill.training.flops import DTYPES, parameters, train_flops_per_token
from gptmill.training.gradients import LINEAR_BYTES
from gptmill.training.optimizers import OptimizerName

FP32 = 4
PROGRAM = {"cpu": 400_000_000}
"""Python, torch and libraries in a process's resident memory; GPUs count arrays alone."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A training step, as far as memory depends on the step."""

    config: GPTConfig
    rows: int
    """Rows of a step."""
    length: int
    device: str
    precision: Precision
    optimizer: OptimizerName
    micro_batch: int | None = None
    """Rows of a forward pass; None: all rows on a GPU, a bounded part on a CPU."""
    recompute: bool = False
    adapter: LoRAConfig | None = None
    """None: all weights are trained."""

    @property
    def together(self) -> int:
        """Return the rows of a forward pass."""
        if self.micro_batch is not None or self.device != "cpu":
            return min(self.micro_batch or self.rows, self.rows)
        row = sum(sum(shape) for shape in _matrices(self.config).values()) * self.length * self.size
        layers = 1 if self.recompute else self.config.n_layers
        row *= layers * (1 if self.adapter is None else 2)  # as Gradients.rows counts
        n_parts = -(-self.rows // max(1, LINEAR_BYTES // row))
        return -(-self.rows // n_parts)

    @property
    def size(self) -> int:
        """Return the bytes of a number in a matrix product, s."""
        return DTYPES[self.precision].itemsize


@dataclass(frozen=True)
class Memory:
    """Bytes by part, and the largest sum at one moment."""

    weights: int
    moments: int
    gradients: int
    activations: int
    head: int
    """Logits, and the gradients of hidden states and head."""
    program: int
    peak: int


def memory(work: Work) -> Memory:
    """Estimate the memory of a training step."""
    learned = trained_parameters(work)
    weights, moments = _weights(work), FP32 * _moments(work)
    gradients, activations = FP32 * learned, _activations(work)
    head = _head(work)
    kept = gradients if work.together < work.rows else 0  # of the step's earlier parts
    backward = head + kept + _block_gradients(work)
    peak = weights + moments + max(activations + backward, gradients)
    program = PROGRAM.get(work.device, 0)
    return Memory(weights, moments, gradients, activations, head, program, peak + program)


def trained_parameters(work: Work) -> int:
    """Return the number of trained parameters."""
    if work.adapter is None:
        return parameters(work.config).total
    targets = [shape for name, shape in _matrices(work.config).items() if _is_target(work, name)]
    return work.config.n_layers * work.adapter.rank * sum(map(sum, targets))


def flops_per_token(work: Work) -> int:
    """Return the FLOPs of training; frozen matrices need no gradient of their own."""
    config = work.config
    every = train_flops_per_token(config, work.length)
    if work.adapter is None:
        return every
    frozen = _block_weights(config) + config.vocab_size * config.emb_dim
    return every - 2 * frozen + 6 * trained_parameters(work)


def _matrices(config: GPTConfig) -> Mapping[str, tuple[int, int]]:
    """Return the inputs and outputs of a block's four matrices."""
    width, wide = config.emb_dim, config.ff_dim
    return {
        "attn.c_attn": (width, width + 2 * config.n_kv_heads * config.head_dim),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, 2 * wide if config.gated else wide),
        "mlp.c_proj": (wide, width),
    }


def _is_target(work: Work, name: str) -> bool:
    return work.adapter is not None and name.rpartition(".")[2] in work.adapter.targets


def _block_weights(config: GPTConfig) -> int:
    return config.n_layers * sum(inputs * outputs for inputs, outputs in _matrices(config).values())


def _weights(work: Work) -> int:
    """Return the bytes of all weights, with the casts of the blocks' matrices for the products."""
    total, blocks = parameters(work.config).total, _block_weights(work.config)
    casts = blocks * work.size if work.size < FP32 else 0
    if work.adapter is None:
        return FP32 * total + casts
    frozen = FP32 * (total - blocks) + (casts or FP32 * blocks)  # rounded in place of cast
    return frozen + FP32 * trained_parameters(work)


def _moments(work: Work) -> int:
    """Return the numbers of the optimizer: two a parameter, one in Muon's matrices."""
    both = 2 * trained_parameters(work)
    if work.optimizer == "adamw":
        return both
    return both - (_block_weights(work.config) if work.adapter is None else both // 2)


def _activations(work: Work) -> int:
    """Return the bytes that a forward pass saves for the backward pass."""
    positions = work.together * work.length
    layers = work.config.n_layers
    stream = FP32 * work.config.emb_dim
    if work.recompute:
        return positions * (layers * stream + _layer(work))
    return positions * layers * _layer(work)


def _layer(work: Work) -> int:
    """Return the bytes of a position that a block saves."""
    config, size = work.config, work.size
    width, wide = config.emb_dim, config.ff_dim
    inputs = {"attn.c_attn": width, "mlp.c_fc": width, "mlp.c_proj": wide}
    saved = 2 * FP32 * width  # the stream before both norms
    # a frozen matrix needs no input in the backward pass; attention saves its own output
    for name, numbers in inputs.items():
        saved += size * numbers if work.adapter is None or _is_target(work, name) else 0
    qkv = _matrices(config)["attn.c_attn"][1]
    rotated = width + config.n_kv_heads * config.head_dim if config.rotary else 0
    before = 3 * wide if config.gated else wide  # gate, values and the activated gate; or GELU's
    saved += size * (qkv + rotated + width + before)
    return saved + _scores(work) + _dropout(work)


def _scores(work: Work) -> int:
    """Return the bytes of a position's attention scores, held on a CPU only."""
    config, drops = work.config, work.config.drop_rate > 0
    held = work.precision == "bf16" and work.length <= attention.LONGEST
    if work.device != "cpu" or not (held or drops):
        return 0
    if drops:  # torch computes in fp32, and keeps inputs, scores, mask and product
        return FP32 * 3 * (config.n_heads * work.length + config.emb_dim)
    return work.size * config.n_heads * work.length


def _dropout(work: Work) -> int:
    """Return the bytes of a position's masks after attention and feed-forward."""
    mask = work.size if work.device == "cpu" else 1
    return 2 * mask * work.config.emb_dim if work.config.drop_rate else 0


def _head(work: Work) -> int:
    """Return the bytes of the head at the end of the forward pass, or soon after."""
    config, size = work.config, work.size
    width = config.emb_dim
    padded = -config.vocab_size % head_loss.ALIGN + config.vocab_size
    positions = work.together * work.length
    rows = min(positions, max(1, head_loss.LARGEST // padded))
    hidden = positions * width * (3 * FP32 + size)  # the norm's input and output, and a gradient
    matrix, gradient = size * padded * width, FP32 * config.vocab_size * width
    learns = work.adapter is None or rows < positions
    return hidden + size * rows * padded + matrix + (matrix + gradient if learns else 0)


def _block_gradients(work: Work) -> int:
    """Return the bytes of the gradients inside a block, beyond the arrays already freed."""
    return work.together * work.length * work.size * work.config.ff_dim


def state_bytes(work: Work) -> int:
    """Return the bytes of a saved state: trained weights and moments."""
    return FP32 * (trained_parameters(work) + _moments(work))

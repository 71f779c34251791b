"""A GPT: token embeddings, pre-norm transformer blocks and a head.

Each block is causal attention and a feed-forward. The config selects one of two families. GPT-2
(Radford et al. 2019,
https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf)
has position embeddings, layer norms, biases and GELU. Llama (https://arxiv.org/abs/2302.13971,
https://arxiv.org/abs/2307.09288) has rotary positions, RMS norms, no biases, a gated SiLU, and
may share each key and value among several query heads. The remaining parts are the same in both
families, and all modules have GPT-2's names. checkpoint/layouts.py describes the tensor names and
layouts of files.

Letters: B rows, T positions, S stored positions, C embedding width, H heads, G key-value heads
(H in GPT-2), D = C / H, F width of the feed-forward, V vocabulary, K classes.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gptmill.model.attention import attend
from gptmill.model.kv_cache import Cache, KVCache
from gptmill.model.rope import RopeScaling, Rotation, frequencies

INIT_STD = 0.02


Family = Literal["gpt2", "llama"]


class Size(NamedTuple):
    """Dimensions fixed by a named GPT-2 size.

    The remaining dimensions are chosen with the data.
    """

    emb_dim: int
    n_layers: int
    n_heads: int


SIZES: dict[str, Size] = {
    "laptop": Size(emb_dim=128, n_layers=4, n_heads=4),
    "gpt2-small": Size(emb_dim=768, n_layers=12, n_heads=12),
    "gpt2-medium": Size(emb_dim=1024, n_layers=24, n_heads=16),
    "gpt2-large": Size(emb_dim=1280, n_layers=36, n_heads=20),
    "gpt2-xl": Size(emb_dim=1600, n_layers=48, n_heads=25),
}


@dataclass(frozen=True, kw_only=True)
class Llama:
    """Settings of the Llama family only."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    n_kv_heads: int
    """Heads of keys and values, each shared by n_heads / n_kv_heads query heads
    (https://arxiv.org/abs/2305.13245)."""
    rope_theta: float
    rope_scaling: RopeScaling | None = None


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The architecture of a GPT, without training settings.

    The fields are sufficient to build the model.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    vocab_size: int
    context_length: int
    emb_dim: int
    n_layers: int
    n_heads: int
    drop_rate: float
    qkv_bias: bool
    tie_weights: bool
    hidden_dim: int | None = None
    """Width of the feed-forward; None means four times emb_dim, as in GPT-2."""
    norm_eps: float = 1e-5
    llama: Llama | None = None
    """None means GPT-2."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context_length", "emb_dim", "n_layers", "n_heads", "ff_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)} but must be at least 1")
        if self.emb_dim % self.n_heads:
            raise ValueError(
                f"emb_dim is {self.emb_dim} but must be a multiple of n_heads, {self.n_heads}"
            )
        if not 0 <= self.drop_rate < 1:
            raise ValueError(f"drop_rate is {self.drop_rate} but must be in [0, 1)")
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps is {self.norm_eps} but must be above 0")
        if self.llama is not None:
            self._check_llama(self.llama)

    def _check_llama(self, llama: Llama) -> None:
        if llama.n_kv_heads < 1 or self.n_heads % llama.n_kv_heads:
            raise ValueError(
                f"n_kv_heads is {llama.n_kv_heads} but must divide n_heads, {self.n_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"emb_dim / n_heads is {self.head_dim}: rotary positions need an even number"
            )
        if not llama.rope_theta > 1:
            raise ValueError(f"rope_theta is {llama.rope_theta} but must be above 1")
        if self.qkv_bias:
            raise ValueError("qkv_bias is true: a Llama has no biases")

    @property
    def head_dim(self) -> int:
        """Return the width of a head, D."""
        return self.emb_dim // self.n_heads

    @property
    def n_kv_heads(self) -> int:
        """Return the number of key-value heads, G."""
        return self.n_heads if self.llama is None else self.llama.n_kv_heads

    @property
    def family(self) -> Family:
        """Return the model family: a row of `gptmill.checkpoint.families`."""
        return "gpt2" if self.llama is None else "llama"

    @property
    def gated(self) -> bool:
        """Return whether the feed-forward multiplies with a gate."""
        return self.llama is not None

    @property
    def has_biases(self) -> bool:
        """Return whether layers besides queries, keys and values, and norms, have biases."""
        return self.llama is None

    @property
    def rotary(self) -> bool:
        """Return whether positions are rotations rather than learned embeddings."""
        return self.llama is not None

    @property
    def ff_dim(self) -> int:
        """Return the width of the feed-forward, F."""
        return 4 * self.emb_dim if self.hidden_dim is None else self.hidden_dim


class Attention(nn.Module):
    """Multi-head causal self-attention.

    One fused matrix computes queries, keys and values.
    """

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.drop_rate = config.drop_rate
        kv_width = config.n_kv_heads * config.head_dim
        self.widths = (config.emb_dim, kv_width, kv_width)  # of queries, keys and values
        self.c_attn = nn.Linear(config.emb_dim, sum(self.widths), bias=config.qkv_bias)
        self.c_proj = nn.Linear(config.emb_dim, config.emb_dim, bias=config.has_biases)

    def forward(
        self,
        x: Tensor,
        cache: Cache | None = None,
        mask: Tensor | None = None,
        rotation: Rotation | None = None,
    ) -> Tensor:
        """Attend from each position to itself and earlier positions.

        With a cache, the stored positions are among the earlier positions.
        """
        rows, length, width = x.shape  # B, T, C
        fused = self.c_attn(x)  # (B, T, C + 2 * G * D)
        if rotation is None:
            query, key, value = (self._heads(part) for part in fused.split(self.widths, dim=-1))
        else:  # queries and keys have the same rotation, applied to both together
            value = self._heads(fused[..., -self.widths[2] :])
            rotated = rotation(self._heads(fused[..., : -self.widths[2]]))  # (B, H + G, T, D)
            query, key = rotated.tensor_split([rotated.size(1) - value.size(1)], dim=1)
        if cache is not None:
            key, value = cache.update(self.layer, key, value)  # (B, G, S, D)
        mixed = attend(
            query,
            key,
            value,
            mask=mask,
            dropout=self.drop_rate if self.training else 0.0,
        )  # (B, H, T, D)
        mixed = self.c_proj(mixed.transpose(1, 2).reshape(rows, length, width))  # (B, T, C)
        return F.dropout(mixed, self.drop_rate, self.training)

    def _heads(self, x: Tensor) -> Tensor:
        """Split (B, T, N * D) into heads, (B, N, T, D)."""
        return x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear layers with a wider hidden layer in between.

    GPT-2 uses the tanh form of GELU, Llama a gated SiLU. The gate and the gated values come from
    one fused matrix (https://arxiv.org/abs/2002.05202).
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.drop_rate = config.drop_rate
        self.gated = config.gated
        wide = config.ff_dim
        self.c_fc = nn.Linear(config.emb_dim, 2 * wide if self.gated else wide, bias=not self.gated)
        self.c_proj = nn.Linear(wide, config.emb_dim, bias=not self.gated)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each position independently."""
        wide = self.c_fc(x)  # (B, T, F), or (B, T, 2F)
        if self.gated:
            gate, wide = wide.chunk(2, dim=-1)
            wide = F.silu(gate) * wide  # (B, T, F)
        else:
            wide = F.gelu(wide, approximate="tanh")
        return F.dropout(self.c_proj(wide), self.drop_rate, self.training)  # (B, T, C)


def _norm(config: GPTConfig) -> nn.Module:
    if config.llama is None:
        return nn.LayerNorm(config.emb_dim, eps=config.norm_eps)
    return nn.RMSNorm(config.emb_dim, eps=config.norm_eps)  # https://arxiv.org/abs/1910.07467


class Block(nn.Module):
    """Pre-norm block: attention, then feed-forward, each with a residual connection.

    Attention and feed-forward have separate norms on the input.
    """

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.ln_1 = _norm(config)
        self.attn = Attention(config, layer)
        self.ln_2 = _norm(config)
        self.mlp = FeedForward(config)
        self.recompute = False
        layers = [part for part in self.modules() if isinstance(part, nn.Linear)]
        self.linear_width = sum(layer.in_features + layer.out_features for layer in layers)

    def forward(
        self, x: Tensor, cache: Cache | None, mask: Tensor | None, rotation: Rotation | None
    ) -> Tensor:
        """Return the residual stream after this block.

        With `recompute`, training saves only the block's input and recomputes the rest during the
        backward pass, with the same dropout (https://arxiv.org/abs/1604.06174).
        """
        if self.recompute and self.training and torch.is_grad_enabled():
            out: Tensor = checkpoint(self._out, x, cache, mask, rotation, use_reentrant=False)
            return out
        return self._out(x, cache, mask, rotation)

    def _out(
        self, x: Tensor, cache: Cache | None, mask: Tensor | None, rotation: Rotation | None
    ) -> Tensor:
        x = x + self.attn(self.ln_1(x), cache, mask, rotation)
        out: Tensor = x + self.mlp(self.ln_2(x))  # (B, T, C)
        return out


def _embedding(n: int, width: int) -> nn.Embedding:
    """Return an embedding with uninitialized weights.

    On the meta device, the default initialization would first load all of PyTorch's compiler.
    """
    return nn.Embedding(n, width, _weight=torch.empty(n, width))


class Transformer(nn.Module):
    """Body shared by all heads: ids in, hidden states out."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.tied = False  # whether the owner's head also multiplies with `wte`
        self.wte = _embedding(config.vocab_size, config.emb_dim)
        self.wpe = None if config.rotary else _embedding(config.context_length, config.emb_dim)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.ln_f = _norm(config)

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Return the hidden states (B, T, C) of ids (B, T).

        The final norm is applied. With a cache, the ids of each row follow the row's stored
        positions.
        """
        length, context = ids.size(1), self.config.context_length
        if cache is None:
            assert length <= context, f"{length} ids > {context} positions"
            positions = torch.arange(length, device=ids.device)  # (T,)
            mask = None
        else:
            positions, mask = cache.begin(length)
        x = self._embedded(ids)  # (B, T, C)
        if self.wpe is not None:
            x = x + self.wpe(positions)
        x = F.dropout(x, self.config.drop_rate, self.training)
        rotation = self._rotation(positions)
        for block in self.h:
            x = block(x, cache, mask, rotation)
        if cache is not None:
            cache.end()
        out: Tensor = self.ln_f(x)  # (B, T, C)
        return out

    def _rotation(self, positions: Tensor) -> Rotation | None:
        llama = self.config.llama
        if llama is None:
            return None
        scaling = llama.rope_scaling
        angles = frequencies(self.config.head_dim, llama.rope_theta, scaling)
        magnitude = 1.0 if scaling is None else scaling.magnitude
        return Rotation(positions, angles.to(positions.device), magnitude)

    def _embedded(self, ids: Tensor) -> Tensor:
        """Return the embeddings (B, T, C) of ids (B, T).

        A tied matrix gets a dense gradient from the head. A sparse gradient from the embedding is
        added in place, for the few rows in use, without a second (V, C) array of zeros. Compilers
        support dense gradients only.
        """
        sparse = self.tied and ids.device.type == "cpu" and not torch.compiler.is_compiling()
        return F.embedding(ids, self.wte.weight, sparse=sparse)


class GPT(nn.Module):
    """A GPT with a head for predicting the next id.

    The initial weights depend on the generator alone. Tied weights are stored once: the head
    multiplies with the token embedding, and the state dict has no `lm_head.weight`.
    """

    def __init__(self, config: GPTConfig, *, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        self.cache_dtype: torch.dtype | None = None  # None: as the embedding
        self.transformer = Transformer(config)
        self.transformer.tied = config.tie_weights
        self.lm_head: nn.Module | None = (
            None if config.tie_weights else nn.Linear(config.emb_dim, config.vocab_size, bias=False)
        )  # with tied weights, only quantization.py sets a head
        init_weights(self, config.n_layers, generator)

    @property
    def head_weight(self) -> Tensor:
        """Return the (V, C) matrix from hidden states to logits."""
        if self.lm_head is None:
            return self.transformer.wte.weight
        assert isinstance(self.lm_head.weight, Tensor)
        return self.lm_head.weight

    def hidden(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Return the final hidden states (B, T, C) of ids (B, T)."""
        out: Tensor = self.transformer(ids, cache)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (..., V) of final hidden states (..., C)."""
        if self.lm_head is None:
            return F.linear(hidden, self.transformer.wte.weight)
        out: Tensor = self.lm_head(hidden)
        return out

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Return the next-id logits (B, T, V) for ids (B, T)."""
        return self.logits(self.hidden(ids, cache))

    def new_cache(self, n_rows: int, capacity: int) -> KVCache:
        """Return an empty cache: `n_rows` rows of `capacity` positions."""
        config = self.config
        assert capacity <= config.context_length, "a cache never holds more than the context"
        shape = (config.n_layers, config.n_kv_heads, config.head_dim)
        like = self.transformer.wte.weight
        return KVCache(n_rows, capacity, like=like, shape=shape, dtype=self.cache_dtype)


class GPTClassifier(nn.Module):
    """A GPT body with a classification head.

    The head is linear and reads the last real token of each row. The head has no bias: Hugging
    Face's classifier has none and would drop a bias silently.
    """

    def __init__(
        self, config: GPTConfig, n_classes: int, *, generator: torch.Generator | None = None
    ):
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.score = nn.Linear(config.emb_dim, n_classes, bias=False)
        init_weights(self, config.n_layers, generator)

    @classmethod
    def from_gpt(
        cls, model: GPT, n_classes: int, *, generator: torch.Generator | None = None
    ) -> Self:
        """Return a classifier on the body of `model`.

        The classifier shares the body with `model` and has a new head.
        """
        with torch.device("meta"):
            classifier = cls(model.config, n_classes)
        classifier.transformer = model.transformer
        classifier.transformer.tied = False
        classifier.score = nn.Linear(model.config.emb_dim, n_classes, bias=False)
        init_weights(classifier.score, model.config.n_layers, generator)
        return classifier.to(model.transformer.wte.weight.device)

    def forward(self, ids: Tensor, last: Tensor) -> Tensor:
        """Return the class scores (B, K) of ids (B, T).

        The head reads the hidden state at index `last` (B,) of each row.
        """
        hidden = self.transformer(ids)  # (B, T, C)
        rows = torch.arange(len(ids), device=ids.device)
        scores: Tensor = self.score(hidden[rows, last])  # (B, K)
        return scores


def init_weights(module: nn.Module, n_layers: int, generator: torch.Generator | None) -> None:
    """Initialize weights as in GPT-2.

    Weights are normal, biases zero, and residual projections scaled down. Each contribution to the
    residual stream shrinks with the number of additions, two per block, to keep the variance of
    the stream constant. Weights on the meta device are skipped: there is nothing to draw.
    """
    for name, part in module.named_modules():
        if not isinstance(part, nn.Linear | nn.Embedding) or part.weight.is_meta:
            continue
        std = INIT_STD / math.sqrt(2 * n_layers) if name.endswith("c_proj") else INIT_STD
        nn.init.normal_(part.weight, std=std, generator=generator)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)

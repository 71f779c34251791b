"""A plain GPT with switchable optimizations, for benchmarks/ladder.py.

The plain GPT is written the way a first implementation is. Every rung starts from equal weights and
reads equal batches. The losses therefore show whether an optimization changes more than time.

Letters: B rows, T positions, C width, H heads, D width of one head, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEARNING_RATE = 1e-4
WEIGHT_DECAY = 0.1
VOCABULARY, PADDED = 50257, 50304


class Norm(nn.Module):
    """A layer norm, written out from the formula."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., C), normalized, scaled and shifted."""
        mean = x.mean(dim=-1, keepdim=True)
        variance = x.var(dim=-1, keepdim=True, unbiased=False)
        return self.weight * (x - mean) / torch.sqrt(variance + 1e-5) + self.bias


def gelu(x: Tensor) -> Tensor:
    """Return GELU's tanh approximation, written out from the formula."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class Attention(nn.Module):
    """Causal attention, plain or optimized.

    Plain attention computes three products and all scores; `flash` uses a single product and
    torch's kernel.
    """

    def __init__(self, task: dict[str, Any]) -> None:
        super().__init__()
        width, length = task["width"], task["length"]
        self.heads, self.flash, self.stored_mask = task["heads"], task["flash"], task["stored_mask"]
        self.attend = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        if self.flash:
            self.attend = nn.ModuleList([nn.Linear(width, 3 * width)])
        self.proj = nn.Linear(width, width)
        if self.stored_mask:
            self.register_buffer("mask", torch.ones(length, length, dtype=torch.bool).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        """Mix each position of x (B, T, C) with all earlier positions."""
        rows, length, width = x.shape
        qkv = torch.cat([layer(x) for layer in self.attend], dim=-1) if not self.flash else None
        qkv = self.attend[0](x) if qkv is None else qkv  # (B, T, 3C)
        parts = qkv.view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind()  # (B, H, T, D)
        if self.flash:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            scores = query @ key.transpose(-1, -2) / math.sqrt(query.size(-1))  # (B, H, T, T)
            later = (
                self.mask
                if self.stored_mask
                else torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
            )
            mixed = torch.softmax(scores.masked_fill(later, -torch.inf), dim=-1) @ value
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(rows, length, width))
        return out


class Block(nn.Module):
    """Attention and feed-forward, with norms and residual connections."""

    def __init__(self, task: dict[str, Any]) -> None:
        super().__init__()
        width, norm = task["width"], nn.LayerNorm if task["native"] else Norm
        self.ln_1, self.ln_2 = norm(width), norm(width)
        self.attn = Attention(task)
        self.fc, self.proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.native = task["native"]

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual stream (B, T, C) after this block."""
        x = x + self.attn(self.ln_1(x))
        wide = self.fc(self.ln_2(x))
        wide = F.gelu(wide, approximate="tanh") if self.native else gelu(wide)
        out: Tensor = x + self.proj(wide)
        return out


class PlainGPT(nn.Module):
    """GPT-2's architecture with an untied head, as in the book."""

    def __init__(self, task: dict[str, Any]) -> None:
        super().__init__()
        size = PADDED if task["padded"] else VOCABULARY
        self.wte = nn.Embedding(size, task["width"])
        self.wpe = nn.Embedding(task["length"], task["width"])
        self.blocks = nn.Sequential(*(Block(task) for _ in range(task["layers"])))
        self.ln_f = nn.LayerNorm(task["width"]) if task["native"] else Norm(task["width"])
        self.head = nn.Linear(task["width"], size, bias=False)
        self._draw()

    def _draw(self) -> None:
        """Initialize weights.

        A matrix's weights depend only on the position in the model, not on splits and padding.
        """
        generator = torch.Generator().manual_seed(1)
        layers = [m for m in self.modules() if isinstance(m, nn.Linear | nn.Embedding)]
        with torch.no_grad():
            for layer in layers:
                rows = min(len(layer.weight), VOCABULARY)
                nn.init.zeros_(layer.weight)
                nn.init.normal_(layer.weight[:rows], std=0.02, generator=generator)
                if isinstance(layer, nn.Linear) and layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits (B, T, V) of ids (B, T)."""
        positions = torch.arange(ids.size(1), device=ids.device)
        out: Tensor = self.head(self.ln_f(self.blocks(self.wte(ids) + self.wpe(positions))))
        return out


def plain(
    task: dict[str, Any], batch_at: Callable[[int, dict[str, Any]], tuple[Tensor, Tensor]]
) -> Callable[[int], float]:
    """Return the plain training loop, optimized as `task` selects."""
    kind = task["device"]
    model = PlainGPT(task).to(kind, torch.bfloat16 if task["bf16"] else torch.float32)
    adamw = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=task["fused"]
    )
    called: Any = torch.compile(model) if task["compile"] else model

    def step(number: int) -> float:
        batch = batch_at(number, task)
        if task["pinned"] and kind == "cuda":
            batch = tuple(tensor.pin_memory() for tensor in batch)
        ids, targets = (tensor.to(kind, non_blocking=task["pinned"]) for tensor in batch)
        adamw.zero_grad()
        loss = F.cross_entropy(called(ids).flatten(0, 1), targets.flatten())
        loss.backward()
        adamw.step()
        return float(loss.item())

    return step

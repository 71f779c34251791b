"""Tiny things that many tests need: a vocabulary, a model."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import torch

from gptmill.model import GPT, GPTConfig
from gptmill.tokenizer import Merge, Tokenizer

TINY_TEXT = """The quick brown fox jumps over the lazy dog; the dog, being lazy, lets the fox jump.
In the beginning there was the word, and the word was with the people, and they were many.
You have won a free prize! Call now to claim your prize. See you at lunch then, I will be there.
Shall I compare thee to a summer's day? Thou art more lovely and more temperate: 1234 5678 2026.
"""


def tiny_merges(n_merges: int = 60, text: str = TINY_TEXT) -> list[Merge]:
    """Train byte pair encoding on a few lines: the most frequent pair first, ties by its bytes."""
    words = [[bytes([byte]) for byte in f" {word}".encode()] for word in text.split()]
    merges: list[Merge] = []
    for _ in range(n_merges):
        counts = Counter(pair for word in words for pair in pairwise(word))
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        words = [_merged(word, best) for word in words]
    return merges


def _merged(word: list[bytes], pair: Merge) -> list[bytes]:
    out: list[bytes] = []
    for token in word:
        if out and (out[-1], token) == pair:
            out[-1] += token
        else:
            out.append(token)
    return out


def tiny_tokenizer() -> Tokenizer:
    """Return a tokenizer of 256 bytes, 60 merges and `<|endoftext|>`: 317 ids."""
    return Tokenizer(tiny_merges())


def tiny_bpe(folder: Path) -> tuple[Path, Path]:
    """Write a tiny vocabulary as GPT-2's two files and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer()
    tokenizer.save(folder, context_length=32)
    (folder / "tokenizer_config.json").unlink()
    merges = (folder / "merges.txt").rename(folder / "vocab.bpe")
    return merges, (folder / "vocab.json").rename(folder / "encoder.json")


def tiny_config(
    *,
    vocab_size: int = 317,
    context_length: int = 32,
    drop_rate: float = 0.0,
    qkv_bias: bool = True,
    tie_weights: bool = True,
) -> GPTConfig:
    """Return the smallest config that still has heads and layers to confuse."""
    return GPTConfig(
        vocab_size=vocab_size,
        context_length=context_length,
        emb_dim=24,
        n_layers=2,
        n_heads=3,
        drop_rate=drop_rate,
        qkv_bias=qkv_bias,
        tie_weights=tie_weights,
    )


def tiny_gpt(config: GPTConfig | None = None, *, seed: int = 1) -> GPT:
    """Return a tiny model whose weights, biases too, are large enough to matter."""
    generator = torch.Generator().manual_seed(seed)
    model = GPT(config or tiny_config(), generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()

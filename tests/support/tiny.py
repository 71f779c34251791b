"""Tiny things that many tests need: a vocabulary, a model."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import Tokenizer as Trained
from tokenizers import decoders, models, pre_tokenizers, trainers

from gptmill.files import write_json
from gptmill.model.gpt import GPT, GPTConfig
from gptmill.tokenizer.tokenizer import Merge, Tokenizer
from gptmill.tokenizer.vocabulary import SPELLING, spell

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


SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<file>", "<filename>"]
LACKING = b"\x04\x1d~\xb7\xf1"
"""Bytes that the tiny chatty vocabulary lacks, as SmolLM2's lacks some."""
CHATTY = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}"
    "{% endif %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('no role ' + message['role']) }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""A template with a default system prompt, as SmolLM2's has one."""


COLUMNS = "a  1\nb    12\nc 2026   2026\n"
"""Makes merges of spaces and, where digits are not taken one by one, of digits."""


def train_chatty(
    text: str = TINY_TEXT + COLUMNS * 5, *, size: int = 400, digits: bool = True
) -> Trained:
    """Train a byte-level encoding of SmolLM2's form with Hugging Face's library."""
    trained = Trained(models.BPE())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    steps = [pre_tokenizers.Digits(individual_digits=True), split]
    trained.pre_tokenizer = pre_tokenizers.Sequence(steps) if digits else split
    trained.decoder = decoders.ByteLevel()
    lacking = {spell(bytes([byte])) for byte in LACKING}
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=[c for c in SPELLING.values() if c not in lacking],
        show_progress=False,
    )
    trained.train_from_iterator(text.splitlines(keepends=True), trainer)
    return trained


def chatty_folder(folder: Path) -> Path:
    """Write a tiny tokenizer of SmolLM2's form and its template, as the hub serves them."""
    folder.mkdir(parents=True, exist_ok=True)
    train_chatty().save(str(folder / "tokenizer.json"))
    roles = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    config = {**roles, "unk_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(folder / "tokenizer_config.json", {**config, "chat_template": CHATTY})
    return folder


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

"""The figures that the book prints of weights drawn at random, before and in its pretraining.

`drawn` documents the order in which the book's code takes numbers from torch's generator: with seed
123 our network then has the book's weights. The slow tests need The Verdict, a short story out of
copyright: GPTMILL_VERDICT names the file.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gptmill.model.gpt import GPT, SIZES, GPTConfig
from gptmill.tokenizer.tokenizer import Tokenizer
from tasks.project.environment import ROOT

Pair = tuple[Tensor, Tensor]

SEED = 123
VERDICT = os.environ.get("GPTMILL_VERDICT")
VERDICT_SHA256 = "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f"
needs_verdict = pytest.mark.skipif(VERDICT is None, reason="GPTMILL_VERDICT names no file")
TRAJECTORY = {  # step: loss of the training part, loss of the validation part
    0: (9.781, 9.933),
    5: (8.111, 8.339),
    10: (6.661, 7.048),
    15: (5.961, 6.616),
    20: (5.726, 6.600),
    25: (5.201, 6.348),
}


def config(context_length: int) -> GPTConfig:
    return GPTConfig(
        vocab_size=50257,
        context_length=context_length,
        drop_rate=0.1,
        qkv_bias=False,
        tie_weights=False,
        **SIZES["gpt2-small"]._asdict(),
    )


def drawn(config: GPTConfig) -> GPT:
    """Return a GPT with the book's random weights.

    The book builds both embeddings, then block by block queries, keys, values, the attention's
    projection and the two layers of the feed-forward, then the head; each takes PyTorch's default
    initialization. Norms take no numbers.
    """
    width, wide = config.emb_dim, config.ff_dim
    torch.manual_seed(SEED)
    state = {
        "transformer.wte.weight": nn.Embedding(config.vocab_size, width).weight,
        "transformer.wpe.weight": nn.Embedding(config.context_length, width).weight,
    }
    for layer in range(config.n_layers):
        block = f"transformer.h.{layer}"
        fused = [nn.Linear(width, width, bias=config.qkv_bias).weight for _ in "qkv"]
        state[f"{block}.attn.c_attn.weight"] = torch.cat(fused)
        for name, sizes in {
            "attn.c_proj": (width, width),
            "mlp.c_fc": (width, wide),
            "mlp.c_proj": (wide, width),
        }.items():
            linear = nn.Linear(*sizes)
            state |= {f"{block}.{name}.{key}": part for key, part in linear.named_parameters()}
    state["lm_head.weight"] = nn.Linear(width, config.vocab_size, bias=False).weight
    with torch.device("meta"):
        model = GPT(config)
    for name, parameter in model.named_parameters():
        if ".ln_" in name:
            state[name] = torch.full(parameter.shape, float(name.endswith("weight")))
    model.load_state_dict({name: part.detach() for name, part in state.items()}, assign=True)
    return model.requires_grad_(True)


@torch.no_grad()
def test_the_first_greedy_ids_of_chapter_4() -> None:
    model = drawn(config(1024)).eval()
    ids = [15496, 11, 314, 716]  # "Hello, I am"
    for _ in range(10):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert ids[4:9] == [27018, 24086, 47843, 30961, 42348]
    assert ids[9:] == [7267, 49706, 43231, 47062, 34657]


@torch.no_grad()
def test_the_first_loss_of_chapter_5() -> None:
    inputs = torch.tensor([[16833, 3626, 6100], [40, 1107, 588]])
    targets = torch.tensor([[3626, 6100, 345], [1107, 588, 11311]])
    found = loss(drawn(config(256)).eval(), inputs, targets)
    assert found.item() == pytest.approx(10.7940, abs=1e-4)


@pytest.fixture(scope="module")
def parts() -> tuple[list[Pair], list[Pair]]:
    """Return the windows of the first nine tenths of the characters, and of the rest."""
    assert VERDICT is not None
    content = Path(VERDICT).read_bytes()
    assert hashlib.sha256(content).hexdigest() == VERDICT_SHA256
    folder = ROOT / "data" / "bpe"
    if not folder.is_dir():
        pytest.skip("data/bpe is missing: run `make data`")
    tokenizer = Tokenizer.from_bpe_files(folder / "vocab.bpe", folder / "encoder.json")
    text = content.decode("utf-8")
    cut = int(0.9 * len(text))
    return list(windows(tokenizer, text[:cut])), list(windows(tokenizer, text[cut:]))


def windows(tokenizer: Tokenizer, text: str, length: int = 256) -> Iterator[Pair]:
    ids = torch.tensor(tokenizer.encode(text))
    for start in range(0, len(ids) - length, length):
        yield ids[start : start + length], ids[start + 1 : start + length + 1]


def loss(model: GPT, inputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


@torch.no_grad()
def mean_loss(model: GPT, loader: Iterable[Pair], most: int = 5) -> float:
    losses = []
    for number, (inputs, targets) in enumerate(loader, start=1):
        losses.append(loss(model, inputs, targets).item())
        if number == most:  # before the loader draws another batch
            break
    return sum(losses) / len(losses)


@needs_verdict
@pytest.mark.slow
def test_losses_before_training(parts: tuple[list[Pair], list[Pair]]) -> None:
    model = drawn(config(256)).eval()
    losses = [mean_loss(model, DataLoader(part, batch_size=2), most=9) for part in parts]
    assert losses == pytest.approx([10.9876, 10.9811], abs=1e-4)


@needs_verdict
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_losses_while_training(parts: tuple[list[Pair], list[Pair]]) -> None:
    """The dropout of our network takes numbers in the book's order, too."""
    torch.manual_seed(SEED)
    train = DataLoader(parts[0], batch_size=2, shuffle=True, drop_last=True)
    validation = DataLoader(parts[1], batch_size=2)
    model = drawn(config(256))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.1)
    losses = {}
    batches = (batch for _ in range(10) for batch in train)
    for step, batch in enumerate(batches):
        model.train()
        optimizer.zero_grad()
        loss(model, *batch).backward()
        optimizer.step()
        if step in TRAJECTORY:
            model.eval()
            losses[step] = (mean_loss(model, train), mean_loss(model, validation))
        if step == max(TRAJECTORY):
            break
    for step, expected in TRAJECTORY.items():
        assert losses[step] == pytest.approx(expected, abs=2e-3), step

import mmap
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptmill.model.gpt import (
    GPT,
    INIT_STD,
    SIZES,
    Attention,
    GPTClassifier,
    GPTConfig,
)
from gptmill.model.kv_cache import KVCache
from tests.support.tiny import tiny_config, tiny_gpt


def some_ids(rows: int = 3, length: int = 20) -> Tensor:
    return torch.randint(0, 317, (rows, length), generator=torch.Generator().manual_seed(5))


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# The published counts: with a head of its own, and without it or tied.
COUNTS = {
    "gpt2-small": (163_009_536, 124_412_160),
    "gpt2-medium": (406_212_608, 354_749_440),
    "gpt2-large": (838_220_800, 773_891_840),
    "gpt2-xl": (1_637_792_000, 1_557_380_800),
}


@pytest.mark.parametrize("name", COUNTS)
def test_named_sizes_have_the_published_numbers_of_parameters(name: str) -> None:
    counts = []
    for tie_weights in (False, True):
        config = GPTConfig(
            vocab_size=50257,
            context_length=1024,
            drop_rate=0.1,
            qkv_bias=False,
            tie_weights=tie_weights,
            **SIZES[name]._asdict(),
        )
        with torch.device("meta"):
            counts.append(count(GPT(config)))
    assert tuple(counts) == COUNTS[name]


def test_published_numbers_of_parameters_of_the_parts() -> None:
    config = GPTConfig(
        vocab_size=50257,
        context_length=1024,
        drop_rate=0.1,
        qkv_bias=False,
        tie_weights=True,
        **SIZES["gpt2-small"]._asdict(),
    )
    with torch.device("meta"):
        block = GPT(config).transformer.h[0]
    assert count(block.get_submodule("attn")) == 2_360_064
    assert count(block.get_submodule("mlp")) == 4_722_432
    assert count(block) == 7_085_568


def test_attention_is_torchs() -> None:
    torch.manual_seed(1)
    ours = Attention(tiny_config(), layer=0)
    theirs = nn.MultiheadAttention(24, 3, batch_first=True)
    nn.init.normal_(ours.c_attn.bias)
    nn.init.normal_(ours.c_proj.bias)
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = ours.c_attn.weight, ours.c_attn.bias
    theirs.out_proj.load_state_dict(ours.c_proj.state_dict())
    x = torch.randn(2, 7, 24)
    mask = nn.Transformer.generate_square_subsequent_mask(7)
    expected, _ = theirs(x, x, x, attn_mask=mask, need_weights=False)
    torch.testing.assert_close(ours(x, None, None), expected)


def test_each_position_sees_itself_and_those_before_it_only() -> None:
    model = tiny_gpt()
    ids = some_ids(1)
    changed = ids.clone()
    changed[0, 11] = (changed[0, 11] + 1) % 317
    differs = (model(ids) != model(changed)).any(-1)[0]
    assert differs.tolist() == [False] * 11 + [True] * 9


def test_reading_in_parts_with_a_cache_equals_reading_at_once() -> None:
    model = tiny_gpt()
    ids = some_ids()
    cache = model.new_cache(3, 32)
    with torch.no_grad():
        parts = [model(part, cache) for part in ids.split([7, 1, 1, 11], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), atol=1e-5, rtol=1e-5)


def test_rows_of_a_cache_differ_in_length_and_leave_and_change_places() -> None:
    model = tiny_gpt()
    long, short = some_ids(2, 12)[:, :12]
    with torch.no_grad():
        cache = model.new_cache(3, 32)
        cache.lengths = [0, 0]
        for row, ids in enumerate((long, short[:5])):
            part = cache.part(row, row + 1)
            model(ids[None], part)
            cache.lengths[row] = part.lengths[0]
        both = model(torch.tensor([[1], [2]]), cache)
        torch.testing.assert_close(both[0, 0], model(append(long, 1))[0, -1])
        torch.testing.assert_close(both[1, 0], model(append(short[:5], 2))[0, -1])
        cache.reorder([1, 0, 1])
        assert cache.lengths == [6, 13, 6]
        cache.swap(0, 1)
        cache.lengths.pop()
        again = model(torch.tensor([[3], [4]]), cache)
        torch.testing.assert_close(again[0, 0], model(append(long, 1, 3))[0, -1])
        torch.testing.assert_close(again[1, 0], model(append(short[:5], 2, 4))[0, -1])


def append(ids: Tensor, *more: int) -> Tensor:
    return torch.cat([ids, torch.tensor(more)])[None]


def test_a_cache_does_not_grow() -> None:
    cache = KVCache(1, 4, like=torch.zeros(1), shape=(1, 1, 1))
    with pytest.raises(AssertionError, match="5 positions > 4"):
        cache.begin(5)


def resident() -> int:
    """Return the bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(sys.platform != "linux", reason="counts pages")
def test_a_cache_takes_memory_only_for_stored_positions_and_returns_that_of_a_row() -> None:
    before = resident()
    cache = KVCache(4, 2**16, like=torch.zeros(1), shape=(2, 2, 64))  # 2 x 268 MB
    for keys in cache.keys:
        keys[1, :, : 2**12], keys[2, :, : 2**12] = 1, 2
    stored = resident() - before
    assert 8e6 < stored < 32e6
    cache.release(1)
    assert resident() - before < 0.75 * stored
    for keys in cache.keys:
        assert not keys[1].any()
        assert keys[2, :, : 2**12].eq(2).all()


def test_the_head_is_tied_or_not() -> None:
    tied, untied = tiny_gpt(), tiny_gpt(tiny_config(tie_weights=False))
    assert "lm_head.weight" not in tied.state_dict()
    assert "lm_head.weight" in untied.state_dict()
    hidden = tied.hidden(some_ids())
    expected = hidden @ tied.transformer.wte.weight.T
    torch.testing.assert_close(tied(some_ids()), expected)
    assert untied.head_weight is not untied.transformer.wte.weight


def test_the_first_weights_are_a_function_of_the_generator_alone() -> None:
    config = tiny_config()
    first = GPT(config, generator=torch.Generator().manual_seed(1)).state_dict()
    torch.manual_seed(99)
    second = GPT(config, generator=torch.Generator().manual_seed(1)).state_dict()
    other = GPT(config, generator=torch.Generator().manual_seed(2)).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["transformer.wte.weight"], other["transformer.wte.weight"])


def test_the_first_weights_are_spread_as_in_gpt2() -> None:
    config = GPTConfig(
        vocab_size=500,
        context_length=500,
        emb_dim=128,
        n_layers=8,
        n_heads=2,
        drop_rate=0.0,
        qkv_bias=True,
        tie_weights=False,
    )
    model = GPT(config, generator=torch.Generator().manual_seed(1))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif ".ln_" in name:
            assert (parameter == 1).all()
        else:
            expected = INIT_STD / 4 if "c_proj" in name else INIT_STD
            assert parameter.std().item() == pytest.approx(expected, rel=0.03), name


def test_dropout_acts_in_training_alone() -> None:
    model = tiny_gpt(tiny_config(drop_rate=0.5))
    ids = some_ids()
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))


def test_every_parameter_gets_a_gradient() -> None:
    model = tiny_gpt(tiny_config(tie_weights=False)).train()
    F.cross_entropy(model(some_ids()).flatten(0, 1), some_ids().flatten()).backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_a_classifier_reads_each_rows_last_token() -> None:
    model = tiny_gpt()
    classifier = GPTClassifier.from_gpt(model, 2, generator=torch.Generator().manual_seed(1)).eval()
    ids = some_ids(2, 9)
    scores = classifier(ids, torch.tensor([8, 3]))
    expected = classifier.score(model.hidden(ids))
    torch.testing.assert_close(scores, torch.stack([expected[0, 8], expected[1, 3]]))
    assert classifier.transformer is model.transformer


def test_too_many_ids_are_refused() -> None:
    with pytest.raises(AssertionError, match="33 ids > 32 positions"):
        tiny_gpt()(some_ids(1, 33))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0 but must be at least 1"),
        ({"context_length": -5}, "context_length is -5"),
        ({"n_layers": 0}, "n_layers is 0"),
        ({"n_heads": 5}, "emb_dim is 24 but must be a multiple of n_heads, 5"),
        ({"drop_rate": 1.0}, r"drop_rate is 1.0 but must be in \[0, 1\)"),
        ({"drop_rate": -0.1}, "drop_rate is -0.1"),
    ],
)
def test_bounds_are_checked(change: dict[str, Any], message: str) -> None:
    good = vars(tiny_config())
    with pytest.raises(ValueError, match=message):
        GPTConfig(**{**good, **change})

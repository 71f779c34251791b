from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from gptmill.generation.decoder import GenerationConfig, generate
from gptmill.generation.quantization import Int8Linear, WeightFormat, quantize
from gptmill.model.gpt import GPT, GPTConfig, Llama

CONFIG = GPTConfig(
    vocab_size=317,
    context_length=32,
    emb_dim=96,
    n_layers=3,
    n_heads=3,
    drop_rate=0.0,
    qkv_bias=True,
    tie_weights=True,
)
LLAMA = replace(
    CONFIG, qkv_bias=False, hidden_dim=224, llama=Llama(n_kv_heads=1, rope_theta=1000.0)
)
SHAPES = {
    "gpt2": CONFIG,
    "gpt2 untied": replace(CONFIG, tie_weights=False),
    "gpt2 of odd widths": replace(CONFIG, emb_dim=75, n_heads=5, hidden_dim=101),
    "llama": LLAMA,
    "llama untied": replace(LLAMA, tie_weights=False),
}
# of the root mean square of the logits: 2 ** -9 and 1 / 254 a weight, some of it averaged out
FARTHEST: dict[WeightFormat, float] = {"fp32": 1e-5, "bf16": 0.03, "int8": 0.06}
PROMPTS = [[5, 6, 7], [9], list(range(40, 52)), [5, 6, 7, 8]]
GREEDY = GenerationConfig(max_new_tokens=40, temperature=0.0, top_k=0, top_p=1.0)


def model_of(config: GPTConfig) -> GPT:
    model = GPT(config, generator=torch.Generator().manual_seed(1)).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise, alpha=0.05)
    return model


@pytest.mark.parametrize("kind", list(FARTHEST))
@pytest.mark.parametrize("name", list(SHAPES))
@torch.no_grad()
def test_logits_are_close_to_those_of_the_model(name: str, kind: WeightFormat) -> None:
    model = model_of(SHAPES[name])
    quantized = quantize(model, kind)
    for rows, length in [(1, 1), (3, 9), (4, 32)]:  # few rows and many: two ways for int8
        ids = torch.randint(317, (rows, length), generator=torch.Generator().manual_seed(3))
        expected, found = model(ids), quantized(ids)
        assert found.dtype == torch.float32
        error = (found - expected).square().mean().sqrt() / expected.square().mean().sqrt()
        assert error < FARTHEST[kind]
        assert kind == "fp32" or error > 1e-4


@pytest.mark.parametrize("kind", list(FARTHEST))
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_batched_equals_single_and_goes_past_the_context(name: str, kind: WeightFormat) -> None:
    model = quantize(model_of(SHAPES[name]), kind)
    expected = torch.float32 if kind == "fp32" else torch.bfloat16
    assert model.new_cache(1, 8).keys[0].dtype == expected
    together = generate(model, PROMPTS, GREEDY, stop_ids=(), seed=1)
    for prompt, new_ids in zip(PROMPTS, together, strict=True):
        assert generate(model, [prompt], GREEDY, stop_ids=(), seed=1) == [new_ids]
    assert [len(row) for row in together] == [40] * 4


@pytest.mark.parametrize("name", list(SHAPES))
def test_every_linear_layer_is_replaced_and_the_model_is_as_it_was(name: str) -> None:
    model = model_of(SHAPES[name])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    quantized = quantize(model, "int8")
    assert not [part for part in quantized.modules() if isinstance(part, nn.Linear)]
    n_linear = sum(isinstance(part, nn.Linear) for part in model.modules())
    n_int8 = sum(isinstance(part, Int8Linear) for part in quantized.modules())
    assert n_int8 == n_linear + (model.lm_head is None)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert quantized.transformer.wte.weight is model.transformer.wte.weight


@pytest.mark.parametrize("kind", ["bf16", "int8"])
@torch.no_grad()
def test_likeliest_ids_of_nearly_one_score_do_not_tie(kind: WeightFormat) -> None:
    model = model_of(replace(CONFIG, tie_weights=False))
    head = model.head_weight  # (V, C)
    head[:40] = 6 * head[0] + torch.arange(40)[:, None] * 1e-6  # too near for bfloat16
    hidden = torch.sign(head[0]).expand(2, 3, -1)  # (B, T, C)
    expected, found = model.logits(hidden), quantize(model, kind).logits(hidden)
    assert expected[0, 0, :40].min() > 16
    assert len(expected[0, 0, :40].bfloat16().unique()) == 1
    torch.testing.assert_close(found[..., :40], expected[..., :40], atol=2e-5, rtol=0)


def test_int8_weights_are_within_half_a_step_and_zeros_stay() -> None:
    weight = torch.randn(7, 64, generator=torch.Generator().manual_seed(4))
    weight[3] = 0
    layer = Int8Linear(weight, None)
    steps = layer.scales.float()[:, None]
    assert_within(layer.weight.float() * steps, weight, 0.51 * steps)
    assert layer.weight.abs().amax(1).tolist()[:3] == [127] * 3
    assert not layer.weight[3].any()


def assert_within(found: Tensor, expected: Tensor, bound: Tensor) -> None:
    assert bool(((found - expected).abs() <= bound).all())


def test_without_onednn_bf16_is_the_same_but_for_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(CONFIG)
    packed = quantize(model, "bf16")
    monkeypatch.setattr("gptmill.model.packing._packs", lambda weight: False)
    plain = quantize(model, "bf16")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(plain(ids), packed(ids), atol=0.05, rtol=0.01)


def test_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match="kind is 'int4'; allowed are fp32, bf16, int8"):
        quantize(model_of(CONFIG), "int4")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", list(FARTHEST))
def test_a_consumed_model_gives_up_its_layers_and_the_copy_decodes_the_same(
    kind: WeightFormat,
) -> None:
    model = model_of(SHAPES["llama"])
    expected = generate(quantize(model, kind), PROMPTS, GREEDY, stop_ids=(), seed=1)
    copy = quantize(model, kind, consumed=True)
    assert generate(copy, PROMPTS, GREEDY, stop_ids=(), seed=1) == expected
    layers = [layer for layer in model.transformer.modules() if isinstance(layer, nn.Linear)]
    assert layers
    assert all(layer.weight.is_meta for layer in layers)

from itertools import cycle, product

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gptmill.model.gpt import GPT, SIZES, GPTConfig, Llama
from gptmill.training import flops
from gptmill.training.flops import (
    DATASHEET,
    datasheet_peak,
    measured_peak,
    parameters,
    train_flops_per_token,
)


def config_of(**changed):
    settings = {
        "vocab_size": 317,
        "context_length": 32,
        "emb_dim": 24,
        "n_layers": 2,
        "n_heads": 3,
        "drop_rate": 0.0,
        "qkv_bias": True,
        "tie_weights": True,
    }
    return GPTConfig(**(settings | changed))


def llama_of(**changed):
    own = {"hidden_dim": 40, "qkv_bias": False, "emb_dim": 48, "n_heads": 6}
    return config_of(**own, llama=Llama(n_kv_heads=2, rope_theta=10_000.0), **changed)


LLAMAS = [
    llama_of(tie_weights=tied, n_layers=layers) for tied in (False, True) for layers in (1, 3)
]
CONFIGS = (
    [
        config_of(emb_dim=width, n_layers=layers, qkv_bias=bias, tie_weights=tied)
        for width, layers, bias, tied in product((24, 48), (1, 3), (False, True), (False, True))
    ]
    + [
        config_of(vocab_size=50257, context_length=1024, **size._asdict(), tie_weights=tied)
        for size in SIZES.values()
        for tied in (False, True)
    ]
    + LLAMAS
)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_parameters_are_those_of_the_model_part_by_part(config):
    with torch.device("meta"):
        model = GPT(config)

    def size(*parts):
        names = [f".{name}" for name, _ in model.named_parameters()]
        return sum(
            p.numel()
            for name, p in zip(names, model.parameters(), strict=True)
            if any(part in name for part in parts)
        )

    counts = parameters(config)
    assert counts.total == sum(p.numel() for p in model.parameters())
    assert counts.token_embedding == size(".wte.")
    assert counts.positions == size(".wpe.")
    assert counts.attention == size(".attn.")
    assert counts.feed_forward == size(".mlp.")
    assert counts.norms == size(".ln_")
    assert counts.head == size(".lm_head.")
    assert counts.non_embedding == size(".h.", ".ln_f.")


def test_gpt2_small_has_the_size_it_is_known_by():
    gpt2 = config_of(vocab_size=50257, context_length=1024, **SIZES["gpt2-small"]._asdict())
    assert parameters(gpt2).total == 124_439_808


@pytest.mark.parametrize("family", [config_of, llama_of])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("length", [7, 32])
def test_the_formula_is_what_torch_counts_in_a_training_step(family, tied, length):
    """Equal, no tolerance: torch counts matrix products alone, and so does the formula.

    Attention runs in its plain form here, because torch does not count the CPU's fused kernel,
    and would count the scores that a GPU's fused kernel computes a second time to save memory.
    So does the head's loss: our own is an operator that torch does not look into.
    """
    config = family(tie_weights=tied)
    model = GPT(config)
    ids = torch.arange(3 * length).view(3, length) % 317
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
    assert counter.get_total_flops() == ids.numel() * train_flops_per_token(config, length)


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("A100-SXM4-40GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA A10", 125),
        ("Tesla T4", 65),
        ("NVIDIA GeForce RTX 3090", 71),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA B200", 2250),
    ],
)
def test_a_gpu_is_found_by_its_name(name, teraflops):
    assert datasheet_peak(name) == pytest.approx(teraflops * 1e12)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA A10G",
        "NVIDIA L40",
        "NVIDIA GH200 480GB",
        "Intel(R) Xeon(R) Processor (AVX512+AMX)",
        "",
    ],
)
def test_a_name_that_only_resembles_one_is_not_found(name):
    assert datasheet_peak(name) is None


def test_every_entry_says_where_its_number_is_from():
    assert all(peak.source.startswith("https://") for peak in DATASHEET)
    assert all(10e12 < peak.flops < 10e15 for peak in DATASHEET)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_measured_peak_is_the_best_rate_of_all_timings(precision, monkeypatch):
    seconds = cycle([9.0, 4.0, 2.0, 3.0])
    dtypes = set()

    def timed(x, weight):
        dtypes.add(x.dtype)
        assert x.size(1) == weight.size(1)
        return next(seconds)

    monkeypatch.setattr(flops, "_timed", timed)
    monkeypatch.setattr(flops, "CPU_SHAPES", ((4, 8, 16), (8, 8, 8)))
    state = torch.get_rng_state()
    assert measured_peak("cpu", precision, 0.02) == 2 * 4 * 8 * 16 / 2.0
    assert torch.equal(torch.get_rng_state(), state)
    assert dtypes == {flops.DTYPES[precision]}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_peak_is_measured_in_any_time_given(precision, monkeypatch):
    monkeypatch.setattr(flops, "CPU_SHAPES", ((64, 64, 64),))
    assert 1e6 < measured_peak("cpu", precision, seconds=0.0) < 1e14


@pytest.mark.gpu
def test_a_gpu_reaches_a_good_part_of_its_datasheet():
    stated = datasheet_peak(torch.cuda.get_device_name())
    measured = measured_peak("cuda", "bf16")
    assert measured > 1e12
    assert stated is None or 0.3 * stated < measured < 1.1 * stated

"""`gptmill estimate` beside measured peaks, on a CPU here and on an H100 before."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptmill.cli.estimate.memory import Work, memory, trained_parameters
from gptmill.cli.estimate.speed import GPUS
from gptmill.cli.frame import main
from gptmill.model.gpt import GPT, SIZES, GPTConfig, Llama
from gptmill.model.lora import LoRAConfig, add_lora
from gptmill.training.flops import datasheet_peak
from tasks.project.environment import ROOT
from tests.support.talkers import environment, gptmill

FACTOR = 1.25
"""Measured on a CPU, to be compared with the estimate: allocators keep freed arrays."""
ADAPTER = LoRAConfig(8, 8.0, 0.0, ("c_attn", "c_proj", "c_fc"))


def config_of(**changed: Any) -> GPTConfig:
    settings: dict[str, Any] = {
        **SIZES["gpt2-small"]._asdict(),
        "vocab_size": 50257,
        "context_length": 1024,
        "drop_rate": 0.0,
        "qkv_bias": True,
        "tie_weights": True,
    }
    return GPTConfig(**settings | changed)


@pytest.mark.parametrize(("rows", "measured"), [(8, 5.66e9), (32, 14.0e9)])
def test_the_estimate_is_the_peak_measured_on_an_h100(rows: int, measured: float) -> None:
    """torch 2.11, eager; compiled, the 32 rows took 14.3 GB."""
    work = Work(
        config=config_of(),
        rows=rows,
        length=1024,
        device="cuda",
        precision="bf16",
        optimizer="adamw",
    )
    assert memory(work).peak == pytest.approx(measured, rel=0.06)
    halves = dataclasses.replace(work, micro_batch=rows // 2)
    assert memory(dataclasses.replace(halves, recompute=True)).peak < memory(halves).peak
    assert memory(halves).peak < memory(work).peak


def test_an_adapter_has_the_parameters_of_the_model() -> None:
    llama = Llama(n_kv_heads=2, rope_theta=1e4)
    for changed in ({}, {"llama": llama, "hidden_dim": 96, "qkv_bias": False}):
        config = config_of(emb_dim=64, n_heads=4, n_layers=2, **changed)
        model = GPT(config)
        add_lora(model, ADAPTER)
        work = Work(
            config=config,
            rows=1,
            length=8,
            device="cpu",
            precision="fp32",
            optimizer="adamw",
            adapter=ADAPTER,
        )
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert trained_parameters(work) == trained


def test_every_gpu_has_a_published_peak() -> None:
    assert all(datasheet_peak(gpu.name) for gpu in GPUS.values())


def test_a_plan_is_estimated_from_params_and_a_preset(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    preset = (
        "params: {pretrain.shape: gpt2-small, pretrain.steps: 7, sample.windows.max_length: 64}"
    )
    (tmp_path / "mine.yaml").write_text(preset)
    words = ("estimate", "--config", "mine.yaml", "--device", "H100", "--mfu", "0.5")
    figures = json.loads(gptmill(*words, "--json", cwd=tmp_path).stdout)
    assert figures["tokens"] == 7 * 1024
    assert figures["rows_of_a_step"] == 16
    assert figures["parameters"] == 124_439_808 - (1024 - 64) * 768
    seconds = figures["tokens"] * figures["flops_per_token"] / (0.5 * 989.5e12)
    assert figures["seconds"] == pytest.approx(seconds)
    assert figures["fits"] is True
    assert "memory: at the peak" in gptmill(*words, cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("preset", "words", "message"),
    [
        (None, [], "params.yaml does not exist: run the command in the project's folder"),
        ("params: [1]", [], "mine.yaml: params: the content is [1]; "),
        ("params: {pretrain.step: 1}", [], "mine.yaml: params.yaml has no pretrain.step;"),
        ("params: {pretrain.steps: many}", [], "mine.yaml: pretrain.steps is 'many'; input should"),
        ("params: {pretrain.batch_tokens: 1000}", [], "must be a multiple of sample.windows.max"),
        ("a: [", [], "mine.yaml is not YAML: "),
        ("params: {}", ["--shape", "gpt9"], "the shape is 'gpt9'; allowed are laptop, gpt2-small"),
        ("params: {}", ["--device", "H99"], "--device is 'H99'; allowed are here, B200, H200"),
        ("params: {}", ["--mfu", "2"], "--mfu is 2 but must be above 0 and at most 1"),
        (
            "params: {pretrain.start: data/weights/none}",
            [],
            "data/weights/none does not exist: run `make data` first",
        ),
    ],
)
def test_a_mistake_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    preset: str | None,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if preset is not None:
        shutil.copy(ROOT / "params.yaml", tmp_path)
        (tmp_path / "mine.yaml").write_text(preset)
        words = ["--config", "mine.yaml", *words]
    assert main(["estimate", *words]) == 2
    out, told = capsys.readouterr()
    assert not out
    assert message in told
    assert len(told.splitlines()) == 1


CHILD = """
import json, resource, sys, torch
from gptmill.device import RuntimeConfig, keep_freed_memory, pick
from gptmill.model.gpt import GPT, GPTConfig
from gptmill.model.lora import LoRAConfig, add_lora, narrow_frozen
from gptmill.model.objectives import LANGUAGE
from gptmill.training.flops import DTYPES
from gptmill.training.guard import GuardConfig
from gptmill.training.optimizers import OptimizerConfig
from gptmill.training.plan import Plan, StoppingConfig
from gptmill.training.trainer import Trainer
case = json.loads(sys.argv[1])
device = pick(RuntimeConfig("cpu", case["precision"], False, "auto", case["recompute"]))
keep_freed_memory()
config = GPTConfig(**case["config"])
model = GPT(config, generator=torch.Generator().manual_seed(1))
if case["adapter"]:
    add_lora(model, LoRAConfig(8, 8.0, 0.0, ("c_attn", "c_proj", "c_fc")))
    narrow_frozen(model, DTYPES[device.precision])
optimizer = OptimizerConfig("adamw", "linear", 1.0, 0.0, 0.0, 0.1, 0.9, 0.999, 1.0, 0.95)
plan = Plan(3, 1e-4, optimizer, 1, 9, 0, StoppingConfig(0, "last"), GuardConfig(0, "skip", 1), None)
def batch(number):
    ids = torch.randint(config.vocab_size, (case["rows"], case["length"] + 1))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
for step in Trainer(model, LANGUAGE, batch, plan=plan, device=device).steps():
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
SMALL = {"emb_dim": 384, "n_layers": 6, "n_heads": 6}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "settings"),
    [
        (SMALL, {"rows": 8, "length": 256}),
        (SMALL, {"rows": 8, "length": 256, "precision": "fp32"}),
        (SMALL, {"rows": 8, "length": 256, "recompute": True}),
        (SMALL, {"rows": 8, "length": 256, "adapter": True}),
        ({"drop_rate": 0.1}, {"rows": 2, "length": 512}),
    ],
)
def test_the_estimate_is_the_peak_measured_on_this_cpu(
    changed: dict[str, Any], settings: dict[str, Any]
) -> None:
    config = config_of(**changed)
    case = {"precision": "bf16", "recompute": False, "adapter": False, **settings}
    told = json.dumps({**case, "config": dataclasses.asdict(config)})
    done = subprocess.run(
        [sys.executable, "-c", CHILD, told], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr
    work = Work(
        config=config,
        device="cpu",
        optimizer="adamw",
        **{**case, "adapter": ADAPTER if case["adapter"] else None},
    )
    estimate, measured = memory(work).peak, int(done.stdout)
    print(f"\nestimated {estimate / 1e9:.2f} GB, measured {measured / 1e9:.2f} GB", work)
    assert measured / FACTOR < estimate < measured * FACTOR

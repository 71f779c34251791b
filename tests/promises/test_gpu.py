"""What is promised of a GPU, held against the CPU; on the CPU the same tests hold by themselves."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gptmill.checkpoint.checkpoint import load_causal_lm, save_causal_lm
from gptmill.device import Device, Precision, pick
from gptmill.generation.decoder import DecodingBatch, DecodingSequence, generate
from gptmill.generation.quantization import quantize
from gptmill.model.gpt import GPT
from gptmill.training.state.store import StateStore
from tests.support.courses import (
    OPTIMIZER,
    RUNTIME,
    trainer,
    weights_hash,
)
from tests.support.decoders import PROMPTS, babbler, greedy
from tests.support.tiny import tiny_config, tiny_gpt, tiny_tokenizer

# torch's remarks about its own compiler, on a GPU
pytestmark = [
    pytest.mark.filterwarnings("ignore:The CUDA Graph is empty:UserWarning"),
    pytest.mark.filterwarnings("ignore:TensorFloat32:UserWarning"),
]
ON_CUDA = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
)
DEVICES: list[Any] = ["cpu", pytest.param("cuda", marks=ON_CUDA)]
EAGER_OR_COMPILED: list[Any] = [
    ("cpu", "bf16", False),
    pytest.param("cuda", "fp32", False, marks=ON_CUDA),
    pytest.param("cuda", "bf16", False, marks=ON_CUDA),
    pytest.param("cuda", "bf16", True, marks=ON_CUDA),
]


def picked(device: str, precision: Precision = "fp32", *, compiled: bool = False) -> Device:
    runtime = replace(RUNTIME, device=device, precision=precision, compile=compiled)
    return pick(runtime)


def model_on(device: str) -> GPT:
    return tiny_gpt(tiny_config(drop_rate=0.2)).to(device)


@pytest.mark.parametrize(("device", "precision", "compiled"), EAGER_OR_COMPILED)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_training_that_was_left_goes_on_to_the_same_bytes(
    tmp_path: Path, device: str, precision: Precision, compiled: bool, optimizer: Any
) -> None:
    on = picked(device, precision, compiled=compiled)

    def course(model: GPT, store: StateStore | None) -> Any:
        named = replace(OPTIMIZER, name=optimizer)
        return trainer(model, device=on, store=store, optimizer=named)

    whole = model_on(device)
    expected = [step.loss for step in course(whole, None).steps()]
    with closing(course(model_on(device), StateStore(tmp_path, every=0, keep=2)).steps()) as steps:
        for step in steps:
            if step.step == 5:
                break
    model = model_on(device)
    again = course(model, StateStore(tmp_path, every=0, keep=2))
    assert again.resumed_at == 5
    assert [step.loss for step in again.steps()] == expected
    assert weights_hash(model) == weights_hash(whole)


@pytest.mark.parametrize("device", DEVICES)
def test_a_curve_is_that_of_the_cpu(device: str) -> None:
    def curve(name: str) -> list[float]:
        model = tiny_gpt(tiny_config(drop_rate=0.0)).to(name)
        return [step.loss for step in trainer(model, device=picked(name)).steps()]

    assert curve(device) == pytest.approx(curve("cpu"), abs=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_ids_are_those_of_the_cpu(device: str, family: str) -> None:
    expected = generate(babbler(16, family), PROMPTS, greedy(40), stop_ids=(), seed=7)
    model = babbler(16, family).to(device)
    assert generate(model, PROMPTS, greedy(40), stop_ids=(), seed=7) == expected


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=ON_CUDA)])
def test_a_compiled_step_chooses_the_same_ids(device: str) -> None:
    expected = generate(babbler(16), PROMPTS, greedy(20), stop_ids=(), seed=7)
    model = babbler(16).to(device)
    rows = [
        DecodingSequence.begin(prompt, greedy(20), stop_ids=(), seed=7, index=index)
        for index, prompt in enumerate(PROMPTS)
    ]
    DecodingBatch(model, 3, 16, compiled=True).run(rows)
    assert [row.new_ids for row in rows] == expected


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["bf16", "int8"])
def test_weights_in_fewer_bits_give_nearly_the_same_logits(device: str, kind: Any) -> None:
    ids = torch.tensor([PROMPTS[2]])
    model = tiny_gpt(tiny_config(drop_rate=0.0)).eval()
    with torch.no_grad():
        expected = model(ids)
        found = quantize(model.to(device), kind)(ids.to(device)).float().cpu()
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_a_checkpoint_holds_the_weights_of_the_device(tmp_path: Path, device: str) -> None:
    model = model_on(device)
    save_causal_lm(tmp_path, model, tiny_tokenizer())
    assert weights_hash(load_causal_lm(tmp_path)) == weights_hash(model)

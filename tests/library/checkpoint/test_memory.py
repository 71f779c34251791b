"""Loading takes the memory of the weights and hardly more, whatever form they are in."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gptmill.checkpoint.checkpoint import load_causal_lm, save_causal_lm
from gptmill.checkpoint.layouts import HUGGING_FACE_GPT2
from gptmill.checkpoint.mapping import file_tensors
from gptmill.model.gpt import GPT, GPTConfig
from tasks.project.environment import ROOT
from tests.support.forms import gpt2_config, llama_config, random_gpt
from tests.support.tiny import tiny_tokenizer

CHILD = """
import sys
from pathlib import Path
import torch
from gptmill.checkpoint.checkpoint import load_causal_lm

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))

mapped = sys.argv[3:] == ["mapped"]
load_causal_lm(Path(sys.argv[1]))  # what torch and Python take at first
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
model = load_causal_lm(Path(sys.argv[2]), mapped=mapped)
weights = sum(parameter.nbytes for parameter in model.parameters())
print((status("VmHWM") - before) / weights)
"""
WIDE = {"emb_dim": 768, "n_heads": 12, "n_layers": 4, "vocab_size": 20_000}


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's account of a process is Linux's")
@pytest.mark.parametrize("form", ["safetensors", "bin", "old bin", "llama"])
def test_the_peak_is_the_weights_and_one_tenth(tmp_path: Path, form: str) -> None:
    config = (
        llama_config(**{**WIDE, "hidden_dim": 3072}) if form == "llama" else gpt2_config(**WIDE)
    )
    model = GPT(config)
    save_causal_lm(tmp_path / "big", model, tiny_tokenizer())
    save_causal_lm(tmp_path / "small", GPT(gpt2_config()), tiny_tokenizer())
    if form.endswith("bin"):
        (tmp_path / "big" / "model.safetensors").unlink()
        tensors = file_tensors(HUGGING_FACE_GPT2, model)
        torch.save(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            tmp_path / "big" / "pytorch_model.bin",
            _use_new_zipfile_serialization=form == "bin",
        )
    # The old form cannot be mapped: it is whole in memory before the first tensor, the embedding
    # with a third of these weights, is taken from it.
    assert 0.9 < peak(tmp_path) < (1.4 if form == "old bin" else 1.1)
    if form in ("safetensors", "bin"):
        assert peak(tmp_path, "mapped") < 0.02


def peak(folder: Path, *words: str) -> float:
    """Return the memory that loading takes at most, as a share of the weights."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, folder / "small", folder / "big", *words],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
    )
    return float(done.stdout)


@pytest.mark.parametrize("config", [gpt2_config(), gpt2_config(tie_weights=False), llama_config()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mapped_model_is_the_same_model(
    tmp_path: Path, config: GPTConfig, dtype: torch.dtype
) -> None:
    save_causal_lm(tmp_path, random_gpt(config), tiny_tokenizer(), dtype=dtype)
    copied = load_causal_lm(tmp_path, dtype=dtype)
    model = load_causal_lm(tmp_path, dtype=dtype, mapped=True)
    for name, tensor in copied.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    ids = torch.arange(12)[None]
    expected = copied(ids)
    # another file under that name is none of this model's
    save_causal_lm(tmp_path, random_gpt(config, seed=9), tiny_tokenizer(), dtype=dtype)
    torch.testing.assert_close(model(ids), expected)
    assert not torch.equal(load_causal_lm(tmp_path, dtype=dtype)(ids), expected)


def test_a_mapped_model_is_changed_without_its_file(tmp_path: Path) -> None:
    save_causal_lm(tmp_path, random_gpt(gpt2_config()), tiny_tokenizer())
    before = (tmp_path / "model.safetensors").read_bytes()
    model = load_causal_lm(tmp_path, mapped=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert (tmp_path / "model.safetensors").read_bytes() == before

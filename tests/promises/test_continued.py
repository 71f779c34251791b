"""Own text on a base, through DVC: an own vocabulary, then the training of its model goes on."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gptmill.checkpoint.checkpoint import load_causal_lm
from gptmill.figures import read_figures
from gptmill.files import read_json
from tests.support.project import Project, tiny_project, write_tiny_manifest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a project whose model of an own vocabulary lies in data/weights/own."""
    project = tiny_project(tmp_path_factory.mktemp("continued"))
    project.params({"tokenize": {"vocabulary": "data/text", "vocabulary_size": 300}})
    dvc(project, "repro", "pretrain")
    own = project.root / "data" / "weights" / "own"
    shutil.copytree(project.root / "artifacts" / "pretrain", own)
    write_tiny_manifest(project.root / "data")
    dvc(project, "add", "data")
    return project


def dvc(project: Project, *words: str) -> str:
    """Run a DVC command that must succeed; return the output."""
    done = project.python("-m", "dvc", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def stale(project: Project) -> set[str]:
    """Return the stages with changed deps or params, by DVC."""
    changed = json.loads(dvc(project, "status", "--json"))
    return {name for name, why in changed.items() if "changed deps" in str(why)}


def test_a_model_of_an_own_vocabulary_opens_in_transformers(project: Project) -> None:
    folder = project.root / "data" / "weights" / "own"
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == theirs.config.vocab_size == 300
    ids = tokenizer("the king and his people", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(ids).logits, load_causal_lm(folder)(ids), atol=1e-5, rtol=1e-5
        )


def test_a_continued_training_reads_its_weights_and_is_compared_with_them(
    project: Project,
) -> None:
    project.params({"tokenize": {"vocabulary": "data/text", "vocabulary_size": 300}})
    dvc(project, "repro")
    weights = project.root / "data" / "weights" / "own" / "model.safetensors"
    assert touched(project, weights) & {"tokenize", "pretrain", "evaluate"} == set()
    own = "data/weights/own"
    project.params({"tokenize": {"vocabulary": own}, "pretrain": {"start": own}})
    dvc(project, "repro")
    figures = read_figures(project.root / "artifacts" / "evaluate")
    low, high = (figures[f"continued_gain_bits_per_byte_{end}"] for end in ("low", "high"))
    assert high < 0, (low, high)  # 12 more steps help a model of 12 steps
    origins = read_json(project.root / "artifacts" / "load_gpt2" / "origins.json")
    assert len(origins) == 2  # the text, and the first weights
    assert touched(project, weights) == {"tokenize", "pretrain", "evaluate"}


def touched(project: Project, weights: Path) -> set[str]:
    """Return the stages that change with the bytes of the weights."""
    before, known = weights.read_bytes(), stale(project)
    weights.chmod(0o644)
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        return stale(project) - known - {"data.dvc"}
    finally:
        weights.write_bytes(before)


@pytest.mark.parametrize("weights", ["artifacts/load_gpt2", "artifacts/instruct"])
def test_a_cycle_is_refused_in_one_sentence(project: Project, weights: str) -> None:
    before = (project.root / "params.yaml").read_bytes()
    project.params({"load_gpt2": {"weights": weights}})
    try:
        done = project.python("-m", "tasks", "tokenize")
    finally:
        (project.root / "params.yaml").write_bytes(before)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"change load_gpt2.weights ({weights})" in done.stderr

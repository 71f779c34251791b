import hashlib
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from gptmill.checkpoint.checkpoint import load_causal_lm, save_causal_lm
from gptmill.data.token_file import TokenFile
from gptmill.data.windows import WindowIndex
from gptmill.generation.decoder import GenerationConfig
from gptmill.model.gpt import GPT
from gptmill.model.objectives import mean_language_loss
from gptmill.tokenizer.tokenizer import Tokenizer
from tasks.pretrain import Pretrain, open_windows, pretrain
from tasks.shared.pretraining import Shape
from tests.support.courses import GUARD, OPTIMIZER, STOPPING
from tests.support.fakes import FakeRun
from tests.support.forms import gpt2_config, llama_config, random_gpt
from tests.support.tiny import tiny_config, tiny_gpt, tiny_merges, tiny_tokenizer
from tests.tasks.test_sample import body as sample_body
from tests.tasks.test_sample import write_tokens

PARAMS = Pretrain(
    start="random",
    devices="auto",
    shard=False,
    shape=Shape(emb_dim=24, n_layers=2, n_heads=3),
    drop_rate=0.1,
    qkv_bias=True,
    tie_weights=True,
    steps=30,
    batch_tokens=64,
    learning_rate=1e-2,
    optimizer=replace(OPTIMIZER, warmup=0.1),
    stopping=STOPPING,
    guard=GUARD,
    evaluate_every=12,
    sample_every=12,
    evaluate_windows=5,
    final_windows=1000,
    prompts=["The quick", "You have"],
    generation=GenerationConfig(max_new_tokens=8, temperature=0.8, top_k=20, top_p=1.0),
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    write_tokens(root, train=20, validation=6)
    sample_body(root).out.rename(root / "artifacts" / "sample")
    return root


@pytest.fixture(scope="module")
def finished(project: Path) -> tuple[FakeRun, dict[str, float]]:
    run = FakeRun(project, project / "artifacts" / "pretrain")
    return run, pretrain.body(PARAMS, run)


def test_the_checkpoint_has_the_loss_that_the_metrics_state(project, finished):
    run, metrics = finished
    model = load_causal_lm(run.out)
    tokens = TokenFile.open(project / "artifacts/tokenize/validation.bin")
    index = WindowIndex.load(project / "artifacts/sample", "validation")
    batches = index.batches(tokens, index.spread(1000), batch_size=7)
    loss = mean_language_loss(model, batches, run.device())
    assert metrics["validation_loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics["validation_perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert metrics["validation_windows"] == len(index)
    assert model.config.context_length == 16


def test_it_learns(finished):
    run, metrics = finished
    assert run.steps[0]["train/loss"] > 5.5
    assert metrics["validation_loss"] < 4.5
    assert metrics["tokens"] == 30 * 4 * 16


def test_curve_and_samples_follow_the_evaluations(finished):
    run, _ = finished
    table = pd.read_csv(run.out / "training.csv")
    assert table["step"].tolist() == list(range(1, 31))
    assert not table.drop(columns="fault").isna().any(axis=None)
    evaluations = pd.read_csv(run.out / "evaluations.csv")
    assert evaluations.columns.tolist() == ["step", "val_loss"]
    assert evaluations["step"].tolist() == [12, 24, 30]
    samples = (run.out / "samples.md").read_text(encoding="utf-8")
    assert [samples.count(f"## After {step} steps") for step in (12, 24, 30)] == [1, 1, 1]
    assert samples.count("> **The quick**") == 3
    assert run.models == ["generator"]


def test_two_runs_write_the_same_bytes(project, finished, tmp_path):
    again = FakeRun(project, tmp_path / "again")
    assert pretrain.body(PARAMS, again) == finished[1]
    hashes = [
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in run.out.iterdir()}
        for run in (finished[0], again)
    ]
    assert hashes[0] == hashes[1]


def test_the_seed_draws_the_first_weights(project, tmp_path):
    weights = []
    for seed in (1, 2):
        run = FakeRun(project, tmp_path / str(seed))
        run.seed = seed
        # a learning rate of next to nothing leaves the weights as they were drawn
        pretrain.body(PARAMS.model_copy(update={"steps": 1, "learning_rate": 1e-30}), run)
        weights.append(load_causal_lm(run.out).transformer.wte.weight)
    assert (weights[0] - weights[1]).abs().mean() > 0.01


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shape": "gpt5"}, "shape is 'gpt5'; allowed are laptop"),
        ({"shape": Shape(emb_dim=10, n_layers=1, n_heads=3)}, "must be a multiple of n_heads"),
        ({"prompts": [""]}, "at least 1 character"),
        ({"steps": 0}, "greater than 0"),
        ({"stepz": 1}, "Extra inputs"),
    ],
)
def test_bad_params_are_refused(changed, message):
    with pytest.raises(ValidationError, match=message):
        Pretrain(**(dict(PARAMS) | changed))


def continued(project: Path, model: GPT, out: Path, **changed: object) -> FakeRun:
    """Pretrain on from a model below data/weights."""
    place = f"data/weights/{out.name}"
    save_causal_lm(project / place, model, tiny_tokenizer(), chat_template="{{ messages }}")
    run = FakeRun(project, out)
    changes = {"start": place, "steps": 1, "sample_every": 0, "learning_rate": 1e-30, **changed}
    run.metrics = pretrain.body(PARAMS.model_copy(update=changes), run)
    return run


@pytest.mark.parametrize("config", [gpt2_config(), llama_config()], ids=["gpt2", "llama"])
def test_a_training_goes_on_from_weights_with_their_shape_and_context(project, tmp_path, config):
    config = replace(config, vocab_size=330, context_length=40)  # more rows than the tokenizer has
    first = random_gpt(config).eval()
    run = continued(project, first, tmp_path / "next", drop_rate=0.0)
    model = load_causal_lm(run.out)
    assert model.config == replace(config, drop_rate=0.0)
    for name, tensor in first.state_dict().items():
        # a step of next to nothing leaves the weights, save for weight decay's rounding
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-6, atol=1e-7)
    ids = open_windows(run, "train").batch(0, batch_size=4, seed=run.seed)
    loss = mean_language_loss(first, [ids], run.device())
    assert run.steps[0]["train/loss"] == pytest.approx(loss, rel=1e-5)
    assert run.metrics["start"] == "data/weights/next"
    assert run.metrics["window_length"] == 16
    card = (run.out / "README.md").read_text(encoding="utf-8")
    assert 'base_model: "data/weights/next"' in card
    assert "`model.safetensors` (`sha256:" in card
    assert (run.out / "chat_template.jinja").read_text(encoding="utf-8") == "{{ messages }}"


def test_weights_learn_on(project, tmp_path, finished):
    first = load_causal_lm(finished[0].out)
    run = continued(project, first, tmp_path / "more", learning_rate=5e-3, steps=12)
    assert run.metrics["validation_loss"] < finished[1]["validation_loss"]


def test_weights_that_do_not_fit_the_text_are_refused(project, tmp_path):
    with pytest.raises(
        ValueError, match=r"max_length is 16, but .* reads at most 15 tokens: lower"
    ):
        continued(project, tiny_gpt(tiny_config(context_length=15)), tmp_path / "short")
    tokenizer = project / "artifacts" / "tokenize" / "tokenizer"
    kept = tokenizer.rename(tokenizer.with_name("kept"))
    try:
        tokenizer.mkdir()
        Tokenizer(tiny_merges(20)).save(tokenizer, context_length=32)
        with pytest.raises(ValueError, match=r"ids of a vocabulary other than .*weights/of"):
            continued(project, tiny_gpt(), tmp_path / "of")
    finally:
        shutil.rmtree(tokenizer)
        kept.rename(tokenizer)

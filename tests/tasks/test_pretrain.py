import hashlib
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from pydantic import ValidationError

from gptmill.checkpoint.checkpoint import load_causal_lm
from gptmill.data.token_file import TokenFile
from gptmill.data.windows import WindowIndex
from gptmill.generation.decoder import GenerationConfig
from gptmill.model.objectives import mean_language_loss
from tasks.pretrain import Pretrain, pretrain
from tasks.shared.pretraining import Shape
from tests.support.courses import GUARD, OPTIMIZER, STOPPING
from tests.support.fakes import FakeRun
from tests.tasks.test_sample import body as sample_body
from tests.tasks.test_sample import write_tokens

PARAMS = Pretrain(
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
    assert table.dropna(subset="val_loss")["step"].tolist() == [12, 24, 30]
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

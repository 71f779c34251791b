import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from courses import OPTIMIZER, batch_at, run, weights_hash
from torch import nn

from gptmill.model import GPT
from gptmill.objectives import LANGUAGE
from gptmill.optimizers import learning_rate_at
from helpers import tiny_config, tiny_gpt

# the loop


def test_the_loop_is_torchs_own_pieces_in_their_usual_order():
    # a key's bias has no effect, so its gradient is rounding, which Adam blows up: leave it out
    ours, theirs = tiny_gpt(tiny_config(qkv_bias=False)), tiny_gpt(tiny_config(qkv_bias=False))
    records = run(ours)
    vectors = [p for p in theirs.parameters() if p.ndim < 2]
    matrices = [p for p in theirs.parameters() if p.ndim >= 2]
    adamw = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, 0.95),
    )
    up = torch.optim.lr_scheduler.LinearLR(adamw, start_factor=0.5, total_iters=1)
    down = torch.optim.lr_scheduler.CosineAnnealingLR(adamw, T_max=6, eta_min=1e-3)
    schedule = torch.optim.lr_scheduler.SequentialLR(adamw, [up, down], milestones=[1])
    for step, record in enumerate(records):
        ids, targets = batch_at(step)
        loss = F.cross_entropy(theirs(ids).flatten(0, 1), targets.flatten())
        adamw.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        assert record.learning_rate == pytest.approx(adamw.param_groups[0]["lr"])
        adamw.step()
        schedule.step()
        assert record.loss == pytest.approx(loss.item(), rel=1e-5)
        assert record.grad_norm == pytest.approx(norm.item(), rel=1e-4)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_a_batch_is_learnt_by_heart():
    model = GPT(tiny_config(), generator=torch.Generator().manual_seed(1))
    records = run(model, batches=lambda step: batch_at(0), steps=80, learning_rate=3e-2)
    assert records[0].loss > 5.5
    assert records[-1].loss < 0.5


def test_only_what_requires_a_gradient_is_trained_and_only_matrices_decay():
    model = tiny_gpt()
    model.transformer.wpe.weight.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def nothing(model, batch):
        return 0.0 * sum(p.sum() for p in model.parameters())

    still = replace(LANGUAGE, loss=nothing)
    run(
        model, objective=still, steps=1, learning_rate=0.5, optimizer=replace(OPTIMIZER, warmup=0.0)
    )
    rate = learning_rate_at(0, steps=1, peak=0.5, config=replace(OPTIMIZER, warmup=0.0))
    for name, parameter in model.named_parameters():
        decays = parameter.ndim >= 2 and name != "transformer.wpe.weight"
        shrunk = before[name] * (1 - rate * 0.1 if decays else 1)
        torch.testing.assert_close(parameter.detach(), shrunk)


def test_steps_count_up_and_evaluation_comes_when_due():
    model = tiny_gpt()
    modes = []

    def evaluate():
        modes.append((model.training, torch.is_grad_enabled()))
        return {"val/loss": float(len(modes))}

    records = run(model, steps=7, evaluate=evaluate, evaluate_every=3)
    assert [record.step for record in records] == [1, 2, 3, 4, 5, 6, 7]
    assert [record.tokens for record in records] == [64 * step for step in range(1, 8)]
    due = {record.step: record.evaluation for record in records if record.evaluation}
    assert due == {3: {"val/loss": 1.0}, 6: {"val/loss": 2.0}, 7: {"val/loss": 3.0}}
    assert modes == [(False, False)] * 3
    assert not model.training


def test_a_step_depends_on_its_number_and_the_seed_not_on_what_was_drawn_before():
    dropped = tiny_config(drop_rate=0.3)

    def drawing():
        torch.rand(100)
        return {}

    hashes = []
    for seed, evaluate in ((1, None), (1, drawing), (2, None)):
        model = tiny_gpt(dropped)
        run(model, seed=seed, evaluate=evaluate)
        hashes.append(weights_hash(model))
    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]


def test_dropout_differs_from_step_to_step():
    losses = {
        record.loss
        for record in run(
            tiny_gpt(tiny_config(drop_rate=0.3)),
            batches=lambda step: batch_at(0),
            learning_rate=1e-30,
        )
    }
    assert len(losses) == 8


# same bytes


PROGRAM = """
import sys
sys.path[:0] = ["src", "tests"]
from dataclasses import replace
from courses import CPU, run, weights_hash
from helpers import tiny_config, tiny_gpt
model = tiny_gpt(tiny_config(drop_rate=0.1))
run(model, device=replace(CPU, precision="bf16", compile=sys.argv[1] == "compile"), steps=5)
print(weights_hash(model))
"""


def hashes_of_two_processes(mode, caches):
    root = Path(__file__).parents[1]
    found = []
    for cache in caches:
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache)}
        command = [sys.executable, "-c", PROGRAM, mode]
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, check=True
        )
        found.append(done.stdout.strip())
    return found


def test_two_processes_train_to_the_same_bytes(tmp_path):
    one, other = hashes_of_two_processes("eager", [tmp_path, tmp_path])
    assert one == other


@pytest.mark.slow
def test_two_processes_train_to_the_same_bytes_compiled(tmp_path):
    one, other = hashes_of_two_processes("compile", [tmp_path / "a", tmp_path / "b"])
    assert one == other

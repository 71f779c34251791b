import hashlib
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gptmill.device import RuntimeConfig, pick
from gptmill.head_loss import head_loss
from gptmill.model import GPT
from gptmill.training import (
    IGNORE,
    OptimizerConfig,
    language_loss,
    learning_rate_at,
    mean_language_loss,
    train,
)
from helpers import tiny_config, tiny_gpt

CPU = pick(RuntimeConfig(device="cpu", precision="fp32", compile=False))
OPTIMIZER = OptimizerConfig(
    final_learning_rate=0.1,
    warmup=0.25,
    weight_decay=0.1,
    beta_1=0.9,
    beta_2=0.95,
    clip_norm=1.0,
)


def batch_at(step, *, rows=4, length=16, vocab_size=317):
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(vocab_size, (rows, length + 1), generator=generator)
    return ids[:, :-1], ids[:, 1:]


def run(model, loss=language_loss, batches=batch_at, **changed):
    settings = {
        "steps": 8,
        "learning_rate": 1e-2,
        "optimizer": OPTIMIZER,
        "device": CPU,
        "seed": 1,
    }
    return list(train(model, loss, batches, **(settings | changed)))


def weights_hash(model):
    content = b"".join(p.detach().numpy().tobytes() for p in model.state_dict().values())
    return hashlib.sha256(content).hexdigest()


# the head's loss


def test_head_loss_and_its_gradients_are_those_of_torch():
    torch.manual_seed(1)
    hidden = torch.randn(20, 8, requires_grad=True)
    weight = torch.randn(50, 8, requires_grad=True)
    targets = torch.randint(50, (20,))
    plain = F.cross_entropy(hidden @ weight.T, targets)
    expected = torch.autograd.grad(3 * plain, (hidden, weight))
    ours = head_loss(hidden, weight, targets)
    found = torch.autograd.grad(3 * ours, (hidden, weight))
    torch.testing.assert_close(ours, plain)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_head_loss_in_bf16_is_as_near_to_the_truth_as_autocast_is():
    torch.manual_seed(1)
    hidden = torch.randn(200, 16, requires_grad=True)
    weight = torch.randn(500, 16, requires_grad=True)
    targets = torch.randint(500, (200,))
    exact = F.cross_entropy(hidden @ weight.T, targets)
    truth = torch.autograd.grad(exact, (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        ours = head_loss(hidden, weight, targets)
        plain = F.cross_entropy(F.linear(hidden, weight), targets)
    found = torch.autograd.grad(ours, (hidden, weight))
    autocast = torch.autograd.grad(plain, (hidden, weight))
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(exact.item(), rel=2e-3)
    for one, other, right in zip(found, autocast, truth, strict=True):
        assert one.dtype == torch.float32
        assert (one - right).norm() < 1.1 * (other - right).norm()


def test_head_loss_survives_a_target_of_no_probability():
    hidden = torch.full((1, 1), 1000.0, requires_grad=True)
    loss = head_loss(hidden, torch.tensor([[1.0], [-1.0]]), torch.tensor([1]))
    assert math.isfinite(loss.item())
    assert loss.item() > 80


def test_without_gradients_head_loss_is_torchs_to_the_bit():
    torch.manual_seed(1)
    hidden, weight, targets = torch.randn(9, 4), torch.randn(30, 4), torch.randint(30, (9,))
    with torch.no_grad():
        assert head_loss(hidden, weight, targets) == F.cross_entropy(hidden @ weight.T, targets)


@pytest.mark.parametrize("tied", [True, False])
def test_language_loss_leaves_ignored_targets_out(tied):
    model = tiny_gpt(tiny_config(tie_weights=tied))
    ids, targets = batch_at(0)
    targets = targets.clone()
    targets[:, :5] = IGNORE
    targets[2] = IGNORE
    plain = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    expected = torch.autograd.grad(plain, list(model.parameters()))
    ours = language_loss(model, (ids, targets))
    found = torch.autograd.grad(ours, list(model.parameters()))
    torch.testing.assert_close(ours, plain)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_the_mean_loss_does_not_depend_on_how_rows_are_batched():
    model = tiny_gpt()
    ids, targets = batch_at(0, rows=7)
    targets = targets.clone()
    targets[:3, 2:] = IGNORE
    with torch.no_grad():
        whole = language_loss(model, (ids, targets)).item()
    cut = [(ids[:5], targets[:5]), (ids[5:], targets[5:])]
    assert mean_language_loss(model, cut, CPU) == pytest.approx(whole, rel=1e-6)


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


def test_the_learning_rate_peaks_after_warmup_and_ends_at_its_fraction():
    rates = [learning_rate_at(s, steps=40, peak=2.0, config=OPTIMIZER) for s in range(40)]
    assert rates[:10] == pytest.approx([0.2 * step for step in range(1, 11)])
    assert max(rates) == rates[9] == 2.0
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[24] == pytest.approx((2.0 + 0.2) / 2)
    assert rates[-1] == pytest.approx(0.2)


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_warmup_may_be_nothing_or_everything(warmup):
    config = replace(OPTIMIZER, warmup=warmup)
    rates = [learning_rate_at(s, steps=10, peak=1.0, config=config) for s in range(10)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates == sorted(rates, reverse=warmup == 0)


def test_only_what_requires_a_gradient_is_trained_and_only_matrices_decay():
    model = tiny_gpt()
    model.transformer.wpe.weight.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def still(model, batch):
        return 0.0 * sum(p.sum() for p in model.parameters())

    run(model, still, steps=1, learning_rate=0.5, optimizer=replace(OPTIMIZER, warmup=0.0))
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


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_and_says_where(value):
    def broken(model, batch):
        return language_loss(model, batch) * (
            value if batch[0][0, 0] == batch_at(2)[0][0, 0] else 1
        )

    with pytest.raises(ValueError, match=r"diverged at step 3: loss (nan|inf).*learning_rate"):
        run(tiny_gpt(), broken)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("final_learning_rate", 1.1),
        ("warmup", -0.1),
        ("weight_decay", -1.0),
        ("beta_1", 1.0),
        ("beta_2", math.nan),
        ("clip_norm", 0.0),
    ],
)
def test_bounds_of_the_optimizer(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        replace(OPTIMIZER, **{name: value})


# same bytes


PROGRAM = """
import sys
sys.path[:0] = ["src", "tests"]
from dataclasses import replace
from test_training import CPU, run, tiny_config, tiny_gpt, weights_hash
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

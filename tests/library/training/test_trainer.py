import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gptmill.model.gpt import GPT
from gptmill.model.objectives import IGNORE, LANGUAGE
from gptmill.training.guard import Guard, GuardConfig
from gptmill.training.optimizers import learning_rate_at
from gptmill.training.plan import StoppingConfig
from tests.support.courses import (
    CPU,
    GUARD,
    OPTIMIZER,
    STOPPING,
    batch_at,
    run,
    trainer,
    weights_hash,
)
from tests.support.tiny import tiny_config, tiny_gpt

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


FIRST = replace(STOPPING, evaluate_first=True)


@pytest.mark.parametrize("bad", [None, 2])
def test_an_evaluation_before_the_first_step_changes_no_weight(bad):
    plain, model = tiny_gpt(), tiny_gpt()
    plan = {"guard": replace(GUARD, action="rollback", limit=2), "evaluate_every": 8}
    objective = bad_on(*([] if bad is None else [bad]))
    run(plain, objective=objective, **plan)
    first = {"val/loss": 7.0}
    seen = []

    def evaluate():
        seen.append((weights_hash(model), model.training, torch.is_grad_enabled()))
        return dict(first)

    start = weights_hash(model)
    steps = run(model, objective=objective, evaluate=evaluate, stopping=FIRST, **plan)
    assert seen == [(start, False, False), (weights_hash(plain), False, False)]
    assert weights_hash(model) == weights_hash(plain)
    assert [step.before for step in steps if step.step == 1][-1] == first
    assert not any(step.before for step in steps if step.step > 1)


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
sys.path[:0] = ["src", "."]
from dataclasses import replace
from tests.support.courses import CPU, run, weights_hash
from tests.support.tiny import tiny_config, tiny_gpt
model = tiny_gpt(tiny_config(drop_rate=0.1))
run(model, device=replace(CPU, precision="bf16", compile=sys.argv[1] == "compile"), steps=5)
print(weights_hash(model))
"""


def hashes_of_two_processes(mode, caches):
    root = Path(__file__).parents[3]
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


# cut into parts


def curve(model, **changed):
    return [step.loss for step in run(model, **changed)]


def ragged(index):
    """Return rows of which some targets, and of one row all, are left out."""
    ids, targets = batch_at(index, rows=5)
    targets = targets.clone()
    targets[0, 3:] = targets[3] = targets[4, :9] = IGNORE
    return ids, targets


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 9])
def test_micro_batches_change_nothing(rows):
    # a key's bias has no effect, so its gradient is rounding, which Adam blows up: leave it out
    whole, cut = tiny_gpt(tiny_config(qkv_bias=False)), tiny_gpt(tiny_config(qkv_bias=False))
    expected = curve(whole, batches=ragged)
    assert curve(cut, batches=ragged, micro_batch=rows) == pytest.approx(expected, rel=1e-5)
    for one, other in zip(cut.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("rows_at_once", "expected"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 5)])
def test_a_step_on_a_cpu_is_cut_evenly_by_the_shapes_alone(monkeypatch, rows_at_once, expected):
    model = tiny_gpt(tiny_config(qkv_bias=False))
    whole = curve(tiny_gpt(tiny_config(qkv_bias=False)), batches=ragged)
    row_bytes = 4 * batch_at(0)[0].size(1) * sum(b.linear_width for b in model.transformer.h)
    limit = rows_at_once * row_bytes
    monkeypatch.setattr("gptmill.training.gradients.LINEAR_BYTES", limit)
    steps = run(model, batches=ragged)
    assert {step.micro_batch for step in steps} == {expected}
    assert [step.loss for step in steps] == pytest.approx(whole, rel=1e-5)
    steps = run(tiny_gpt(), batches=ragged, micro_batch=4)
    assert {step.micro_batch for step in steps} == {4}, "a number of rows in the plan is kept"


def test_where_memory_runs_out_the_step_is_cut_and_the_curve_stays():
    def hungry(module, batch):
        if len(batch[0]) > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] can't allocate memory: 5 bytes")
        return LANGUAGE.loss(module, batch)

    expected = curve(tiny_gpt())
    steps = run(tiny_gpt(), objective=replace(LANGUAGE, loss=hungry))
    assert [step.loss for step in steps] == pytest.approx(expected, rel=1e-5)
    assert {step.micro_batch for step in steps} == {2}


def test_where_one_row_is_too_much_it_says_so():
    def starved(module, batch):
        raise torch.OutOfMemoryError("CUDA out of memory\nand more")

    with pytest.raises(ValueError, match=r"one row at a time.*CUDA out of memory\)"):
        run(tiny_gpt(), objective=replace(LANGUAGE, loss=starved))


def test_an_error_of_another_kind_is_not_taken_for_a_lack_of_memory():
    def broken(module, batch):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(tiny_gpt(), objective=replace(LANGUAGE, loss=broken))


MEMORY = """
import resource, sys
sys.path[:0] = ["src", "."]
import torch
import torch._dynamo  # imported by AdamW: memory shall run out in a step, not here
torch.set_num_threads(1)
from tests.support.courses import batch_at, run
from gptmill.model.gpt import GPT
from tests.support.tiny import tiny_config
model = GPT(tiny_config(vocab_size=20_000, context_length=256), generator=torch.manual_seed(1))
at = lambda index: batch_at(index, rows=16, length=256, vocab_size=20_000)
limit = int(sys.argv[1])
if limit:
    held = int(open("/proc/self/statm").read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (held + limit, held + limit))
for step in run(model, batches=at, steps=3):
    print(step.micro_batch, step.loss)
"""


def test_memory_that_really_runs_out_halves_the_micro_batch():
    """The process's own limit is low: 16 rows of logits take 330 MB."""
    root = Path(__file__).parents[3]
    found = []
    for limit in (0, 250_000_000):
        command = [sys.executable, "-c", MEMORY, str(limit)]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append([[float(word) for word in line.split()] for line in done.stdout.splitlines()])
    rows = [sorted({line[0] for line in lines}) for lines in found]
    assert rows[0] == [16.0]
    assert max(rows[1]) < 16
    losses = [[line[1] for line in lines] for lines in found]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


# computed twice


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
@pytest.mark.parametrize(
    ("precision", "compiled"),
    [("fp32", False), ("bf16", False), pytest.param("bf16", True, marks=pytest.mark.slow)],
)
def test_what_is_computed_again_ends_in_the_same_bytes(precision, compiled):
    device = replace(CPU, precision=precision, compile=compiled)
    hashes, kept = [], []
    for recompute in (False, True):
        model = tiny_gpt(tiny_config(drop_rate=0.3))
        sizes = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run(model, device=replace(device, recompute=recompute))
        hashes.append(weights_hash(model))
        kept.append(sum(sizes))
    assert hashes[0] == hashes[1]
    assert compiled or kept[1] < 0.5 * kept[0]


# bad steps


def bad_on(*numbers, value=math.nan):
    first = {tuple(batch_at(number)[0][0].tolist()) for number in numbers}

    def loss(module, batch):
        factor = value if tuple(batch[0][0].tolist()) in first else 1.0
        return LANGUAGE.loss(module, batch) * factor

    return replace(LANGUAGE, loss=loss)


def test_a_bad_step_changes_no_weight_and_its_batch_is_kept():
    guard = replace(GUARD, limit=2)
    model = tiny_gpt()
    training = trainer(
        model,
        objective=bad_on(2),
        guard=guard,
        describe=lambda number: [{"document": f"book {number}"}],
    )
    hashes, faults = [], []
    for step in training.steps():
        hashes.append(weights_hash(model))
        faults.append(step.fault)
    assert faults == [None, None, "loss nan", *[None] * 5]
    assert hashes[1] == hashes[2] != hashes[3]
    bad = training.bad_batches[0]
    assert (bad["step"], bad["batch_number"], bad["fault"]) == (3, 2, "loss nan")
    assert bad["rows"] == [{"document": "book 2"}]
    assert bad["ids"] == batch_at(2)[0].tolist()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_bad_steps_that_go_on_stop_the_training_and_say_where(value):
    with pytest.raises(ValueError, match=r"diverged at step 3 \(loss (nan|inf).*learning_rate"):
        run(tiny_gpt(), objective=bad_on(2, value=value))
    guard = replace(GUARD, limit=3)
    assert len(run(tiny_gpt(), objective=bad_on(2, 3, 5, 6), guard=guard)) == 8
    with pytest.raises(ValueError, match="diverged at step 5"):
        run(tiny_gpt(), objective=bad_on(2, 3, 4), guard=guard)


def test_a_rollback_goes_on_as_if_the_data_between_had_not_been_there():
    """Step 5 (batch 4) is bad: back to the evaluation after step 3, on with batch 5."""
    guard = GuardConfig(spike=0, action="rollback", limit=2)
    evaluate = {"evaluate": lambda: {"val/loss": 1.0}}
    rolled, expected = tiny_gpt(), tiny_gpt()
    steps = run(rolled, objective=bad_on(4), guard=guard, **evaluate)
    assert [step.step for step in steps] == [1, 2, 3, 4, 4, 5, 6, 7, 8]
    assert [step.batch_number for step in steps] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    run(expected, batches=lambda index: batch_at(index if index < 3 else index + 2), **evaluate)
    assert weights_hash(rolled) == weights_hash(expected)


def test_rollbacks_have_a_limit():
    guard = GuardConfig(spike=0, action="rollback", limit=2)
    with pytest.raises(ValueError, match=r"diverged at step 3.*after 2 rollbacks"):
        run(tiny_gpt(), objective=bad_on(2, 5, 8), guard=guard)


def test_a_spike_is_a_norm_far_above_the_usual():
    guard = Guard(GuardConfig(spike=3.0, action="skip", limit=1), norms=[1.0] * 99)
    assert guard.fault(2.0, 50.0) is None  # not enough is known to call it unusual
    assert guard.fault(2.0, 2.9) is None
    assert "5.0 times the usual 1" in guard.fault(2.0, 5.0)
    assert guard.fault(2.0, 2.9) is None  # a bad norm is not remembered
    assert max(guard.norms) == 50.0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"spike": 1.0}, "spike is 1.0 but must be above 1"),
        ({"spike": -1}, "spike is -1"),
        ({"spike": math.nan}, "spike is nan"),
        ({"action": "pray"}, "action is 'pray'; allowed are skip, rollback"),
        ({"limit": 0}, "limit is 0"),
    ],
)
def test_bounds_of_the_guard(changed, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(GUARD, **changed)


# the end


def losses_of(*values):
    """Return an evaluation that gives these losses in turn."""
    left = list(values)
    return lambda: {"val/loss": left.pop(0)}


def test_training_stops_when_validation_turns():
    stopping = StoppingConfig(patience=2, keep="last")
    evaluate = losses_of(3.0, 2.0, 2.5, 2.0, 1.0)
    steps = run(tiny_gpt(), steps=20, evaluate=evaluate, stopping=stopping)
    assert len(steps) == 12


def test_the_best_weights_are_kept_where_asked():
    stopping = StoppingConfig(patience=0, keep="best")
    model, expected = tiny_gpt(), tiny_gpt()
    training = trainer(model, steps=9, evaluate=losses_of(2.0, 1.0, 1.5), stopping=stopping)
    list(training.steps())
    for step in trainer(expected, steps=9).steps():
        if step.step == 6:
            break
    assert weights_hash(model) == weights_hash(expected)
    assert training.evaluation() == {"val/loss": 1.0}


def test_samples_come_when_due_in_eval_mode():
    model = tiny_gpt()

    def sample(step):
        assert not model.training
        return f"after {step}"

    steps = run(model, sample=sample, sample_every=5)
    assert {step.step: step.sample for step in steps if step.sample} == {5: "after 5", 8: "after 8"}


@pytest.mark.parametrize(("changed", "message"), [({"patience": -1}, "patience is -1")])
def test_bounds_of_stopping(changed, message):
    with pytest.raises(ValueError, match=message):
        replace(STOPPING, **changed)
    with pytest.raises(ValueError, match="keep is 'worst'; allowed are last, best"):
        replace(STOPPING, keep="worst")


def test_digests_tell_batches_apart():
    one, other = run(tiny_gpt()), run(tiny_gpt(), seed=2, batches=lambda index: batch_at(index + 1))
    assert [step.batch for step in one][1:] == [step.batch for step in other][:-1]
    assert len({step.batch for step in one}) == 8

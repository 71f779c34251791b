import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from gptmill.model.gpt import GPTClassifier
from gptmill.model.lora import LoRAConfig, add_lora
from gptmill.model.objectives import language_loss
from gptmill.training.optimizers import Optimizer, learning_rate_at
from tests.support.courses import OPTIMIZER
from tests.support.tiny import tiny_config, tiny_gpt

# deterministic algorithms are on: `courses` picks the device
ADAMW = replace(OPTIMIZER, decay=0.5)
MUON = replace(ADAMW, name="muon")
BOTH = pytest.mark.parametrize("config", [ADAMW, MUON], ids=["adamw", "muon"])


def untied():
    # a key's bias has no effect, so its gradient is rounding, which Adam blows up: leave it out
    return tiny_gpt(tiny_config(qkv_bias=False, tie_weights=False))


def backward(model, step):
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(317, (4, 17), generator=generator)
    (language_loss(model, (ids[:, :-1], ids[:, 1:])) / ids[:, 1:].numel()).backward()


def run(model, optimizer, steps):
    for step in steps:
        backward(model, step)
        optimizer.clip()
        optimizer.step(1e-2)
        optimizer.zero_grad()


def same(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# schedules


def by_torch(schedule, *, steps, warmup, falling):
    """Peak 2, final 0.2; the first of torch's rates is that of the first step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    up = LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup - 1)
    if schedule == "cosine":
        down = CosineAnnealingLR(optimizer, T_max=falling, eta_min=0.2)
    else:
        down = LinearLR(optimizer, start_factor=1.0, end_factor=0.1, total_iters=falling)
    # torch starts a part at its milestone with the part's own first rate, the peak
    whole = SequentialLR(optimizer, [up, down], milestones=[steps - 1 - falling])
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        whole.step()
    return rates


@pytest.mark.parametrize(("schedule", "falling"), [("cosine", 30), ("linear", 30), ("wsd", 20)])
def test_the_schedules_are_torchs(schedule, falling):
    config = replace(ADAMW, schedule=schedule)
    rates = [learning_rate_at(s, steps=40, peak=2.0, config=config) for s in range(40)]
    assert rates == pytest.approx(by_torch(schedule, steps=40, warmup=10, falling=falling))
    assert rates[9] == max(rates) == 2.0
    assert rates[-1] == pytest.approx(0.2)


def test_wsd_holds_the_peak_between_its_two_slopes():
    config = replace(ADAMW, schedule="wsd", decay=0.25)
    rates = [learning_rate_at(s, steps=40, peak=2.0, config=config) for s in range(40)]
    assert [step for step, rate in enumerate(rates) if rate == 2.0] == list(range(9, 30))


@pytest.mark.parametrize("steps", [40, 7, 3, 1])
def test_wsd_that_falls_from_the_warmup_on_is_linear_and_without_decay_it_stays(steps):
    def rates(**changed):
        config = replace(ADAMW, warmup=0.5, **changed)
        return [learning_rate_at(s, steps=steps, peak=2.0, config=config) for s in range(steps)]

    # half of 7, and of 3, is rounded up both times, to one step more than there are
    if steps > 1:
        assert rates(schedule="wsd", decay=0.5) == rates(schedule="linear")
    assert rates(schedule="wsd", decay=0.0)[-1] == 2.0


def test_only_wsd_reads_decay():
    for schedule in ("cosine", "linear"):
        one, other = (replace(ADAMW, schedule=schedule, decay=decay) for decay in (0.0, 1.0))
        for step in range(7):
            assert learning_rate_at(step, steps=7, peak=1.0, config=one) == learning_rate_at(
                step, steps=7, peak=1.0, config=other
            )


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
@pytest.mark.parametrize(("warmup", "decay"), [(0.0, 1.0), (1.0, 0.0), (0.5, 0.5), (0.0, 0.0)])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10])
def test_the_rate_rises_to_the_peak_and_then_only_falls(schedule, warmup, decay, steps):
    config = replace(ADAMW, schedule=schedule, warmup=warmup, decay=decay)
    rates = [learning_rate_at(s, steps=steps, peak=1.0, config=config) for s in range(steps)]
    top = max(round(warmup * steps) - 1, 0)
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[top] == 1.0 or round(warmup * steps) == 0
    falls = steps > round(warmup * steps) and (schedule != "wsd" or round(decay * steps) > 0)
    assert rates[-1] == pytest.approx(0.1 if falls else 1.0)


# the optimizers


def test_adamw_is_torchs_used_by_hand():
    ours, theirs = untied(), untied()
    optimizer = Optimizer(ours, ADAMW)
    vectors = [p for p in theirs.parameters() if p.ndim < 2]
    matrices = [p for p in theirs.parameters() if p.ndim >= 2]
    adamw = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, 0.95),
    )
    for step in range(8):
        backward(ours, step)
        backward(theirs, step)
        norm = optimizer.clip()
        assert norm == pytest.approx(nn.utils.clip_grad_norm_(theirs.parameters(), 1.0).item())
        adamw.param_groups[0]["lr"] = adamw.param_groups[1]["lr"] = 1e-2 / (step + 1)
        optimizer.step(1e-2 / (step + 1))
        adamw.step()
        optimizer.zero_grad()
        adamw.zero_grad()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_a_clip_norm_of_zero_changes_no_gradient():
    model = untied()
    optimizer = Optimizer(model, replace(ADAMW, clip_norm=0.0))
    backward(model, 0)
    before = [parameter.grad.clone() for parameter in model.parameters()]
    norm = optimizer.clip()
    assert norm == nn.utils.get_total_norm(before) > 1
    assert all(map(torch.equal, before, (parameter.grad for parameter in model.parameters())))


def test_muon_is_torchs_used_by_hand_beside_adamw():
    ours, theirs = untied(), untied()
    optimizer = Optimizer(ours, MUON)
    matrices = [
        getattr(getattr(block, half), name).weight
        for block in theirs.transformer.h
        for half, name in (
            ("attn", "c_attn"),
            ("attn", "c_proj"),
            ("mlp", "c_fc"),
            ("mlp", "c_proj"),
        )
    ]
    body = theirs.transformer
    tables = [body.wte.weight, body.wpe.weight, theirs.lm_head.weight]
    taken = {id(p) for p in matrices + tables}
    vectors = [p for p in theirs.parameters() if id(p) not in taken]
    assert {p.ndim for p in vectors} == {1}
    muon = torch.optim.Muon(
        matrices, lr=1e-2, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(
        [{"params": tables, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, 0.95),
        fused=True,
    )
    clipped = 0
    for step in range(8):
        backward(ours, step)
        backward(theirs, step)
        norm = optimizer.clip()
        # all gradients share one norm, whichever optimizer they go to
        whole = nn.utils.get_total_norm([p.grad for p in matrices + tables + vectors])
        assert norm == pytest.approx(whole.item())
        clipped += norm.item() > 1.0
        nn.utils.clip_grads_with_norm_(matrices + tables + vectors, 1.0, norm)
        optimizer.step(1e-2)
        muon.step()
        adamw.step()
        for each in (optimizer, muon, adamw):
            each.zero_grad()
    assert clipped
    assert same(ours, theirs)


@BOTH
def test_only_matrices_decay_and_only_what_requires_a_gradient_is_trained(config):
    model = untied()
    model.transformer.wpe.weight.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    Optimizer(model, config).step(0.5)
    for name, parameter in model.named_parameters():
        decays = parameter.ndim >= 2 and name != "transformer.wpe.weight"
        torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if decays else 1))


@BOTH
def test_a_batch_is_learnt_by_heart(config):
    model = untied()
    run(model, Optimizer(model, config), [0] * 80)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(317, (4, 17), generator=generator)
    loss = language_loss(model, (ids[:, :-1], ids[:, 1:])) / ids[:, 1:].numel()
    assert loss.item() < 0.5


def test_muon_gets_the_blocks_matrices_and_nothing_else():
    model = untied()
    optimizer = Optimizer(model, MUON)
    run(model, optimizer, [0])
    found = {n.removesuffix(".momentum_buffer") for n in optimizer.state() if "momentum" in n}
    halves = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert found == {f"transformer.h.{n}.{half}.weight" for n in (0, 1) for half in halves}


@BOTH
def test_a_classifier_with_an_adapter_trains_only_adapter_and_head(config):
    model = GPTClassifier(tiny_config(), 2, generator=torch.Generator().manual_seed(1))
    add_lora(model, LoRAConfig(rank=2, alpha=4.0, dropout=0.0, targets=("c_attn",)))
    optimizer = Optimizer(model, config)
    model(torch.arange(12).view(3, 4), torch.tensor([3, 3, 3])).square().sum().backward()
    optimizer.step(1e-2)
    parts = {name.rsplit(".", 1)[0] for name in optimizer.state()}
    loras = {f"transformer.h.{n}.attn.c_attn.lora_{x}.weight" for n in (0, 1) for x in "AB"}
    assert parts == {"score.weight"} | loras


def test_muon_serves_a_model_with_no_matrix_in_a_trained_block():
    model = untied()
    model.transformer.requires_grad_(False)
    optimizer = Optimizer(model, MUON)
    run(model, optimizer, [0])
    assert set(optimizer.state()) == {
        f"lm_head.weight.{key}" for key in ("step", "exp_avg", "exp_avg_sq")
    }


def test_the_caller_may_look_at_the_norm_and_not_update():
    model = untied()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = Optimizer(model, ADAMW)
    backward(model, 0)
    model.lm_head.weight.grad[0, 0] = math.inf
    assert not optimizer.clip().isfinite()
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert optimizer.state() == {}


# state


@BOTH
def test_a_run_goes_on_from_its_state_to_the_bit(config):
    whole, half = untied(), untied()
    run(whole, Optimizer(whole, config), range(8))
    optimizer = Optimizer(half, config)
    run(half, optimizer, range(4))
    saved = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    resumed = untied()
    resumed.load_state_dict(half.state_dict())
    other = Optimizer(resumed, config)
    other.load(saved)
    loaded = other.state()
    assert list(loaded) == list(saved)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in saved.items())
    run(resumed, other, range(4, 8))
    assert same(resumed, whole)
    # what was loaded are copies: further steps left the saved state as it was
    assert saved["lm_head.weight.step"] == 4


@BOTH
def test_the_moments_matter(config):
    """Without them the run ends elsewhere: else the test above would prove nothing."""
    whole, half = untied(), untied()
    run(whole, Optimizer(whole, config), range(8))
    run(half, Optimizer(half, config), range(4))
    run(half, Optimizer(half, config), range(4, 8))
    assert not same(half, whole)


@BOTH
def test_an_empty_state_is_the_one_before_the_first_step(config):
    fresh, reset = untied(), untied()
    optimizer = Optimizer(reset, config)
    assert optimizer.state() == {}
    run(reset, optimizer, range(3))
    reset.load_state_dict(fresh.state_dict())
    optimizer.load({})
    assert optimizer.state() == {}
    run(reset, optimizer, range(3))
    run(fresh, Optimizer(fresh, config), range(3))
    assert same(reset, fresh)


@BOTH
def test_a_parameter_that_had_no_gradient_yet_goes_on_as_if_never_saved(config):
    def step(model, optimizer, n):
        backward(model, n)
        if n < 2:
            model.transformer.h[0].mlp.c_fc.weight.grad = None
            model.transformer.h[0].mlp.c_fc.bias.grad = None
        optimizer.step(1e-2)
        optimizer.zero_grad()

    whole, half = untied(), untied()
    one, other = Optimizer(whole, config), Optimizer(half, config)
    for n in range(4):
        step(whole, one, n)
    for n in range(2):
        step(half, other, n)
    resumed = Optimizer(half, config)
    resumed.load(other.state())
    for n in range(2, 4):
        step(half, resumed, n)
    assert same(half, whole)


def test_a_state_of_something_else_is_refused_by_name_and_changes_nothing():
    model = untied()
    optimizer = Optimizer(model, MUON)
    run(model, optimizer, range(2))
    good = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    matrix = "transformer.h.0.attn.c_attn.weight.momentum_buffer"
    missing = {name: tensor for name, tensor in good.items() if name != matrix}
    cases = {
        rf"1 missing \({matrix}\)": missing,
        r"1 left over \(nobody\.step\)": good | {"nobody.step": torch.zeros(())},
        rf"{matrix} is float32 \[24, 72\], expected float32 \[72, 24\]": good
        | {matrix: good[matrix].T},
        rf"{matrix} is float64 \[72, 24\]": good | {matrix: good[matrix].double()},
        r"8 missing .*, \.\.\.\).*24 left over": by_adamw(),
    }
    for message, state in cases.items():
        with pytest.raises(ValueError, match=message):
            optimizer.load(state)
        assert all(torch.equal(t, good[name]) for name, t in optimizer.state().items())


def by_adamw():
    model = untied()
    optimizer = Optimizer(model, ADAMW)
    run(model, optimizer, [0])
    return optimizer.state()


# the section


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("final_learning_rate", 1.1),
        ("warmup", -0.1),
        ("decay", 1.5),
        ("weight_decay", -1.0),
        ("beta_1", 1.0),
        ("beta_2", math.nan),
        ("clip_norm", -1.0),
        ("clip_norm", math.nan),
        ("muon_momentum", 1.0),
    ],
)
def test_bounds_of_the_optimizer(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        replace(ADAMW, **{name: value})


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [("name", "sgd", "adamw, muon"), ("schedule", "step", "cosine, linear, wsd")],
)
def test_choices_of_the_optimizer(name, value, allowed):
    with pytest.raises(ValueError, match=f"{name} is '{value}'; allowed are {allowed}"):
        replace(ADAMW, **{name: value})


def test_the_two_slopes_of_wsd_fit_into_the_steps():
    with pytest.raises(ValueError, match=r"warmup is 0\.6 and decay is 0\.5"):
        replace(ADAMW, schedule="wsd", warmup=0.6)
    replace(ADAMW, schedule="linear", warmup=0.6)
    replace(ADAMW, schedule="wsd", warmup=0.3, decay=0.7)


# same bytes


PROGRAM = """
import hashlib, sys
sys.path[:0] = ["src", "."]
import torch
from tests.library.training.test_optimizers import MUON, Optimizer, run, untied
assert torch.are_deterministic_algorithms_enabled()
model = untied()
optimizer = Optimizer(model, MUON)
run(model, optimizer, range(5))
tensors = [*model.state_dict().values(), *optimizer.state().values()]
print(hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest())
"""


def test_two_processes_train_to_the_same_bytes_with_muon():
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", PROGRAM]
    one, other = (
        subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    )
    assert one == other

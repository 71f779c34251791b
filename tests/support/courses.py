"""Small trainings for tests: batches by number, a plan, and a run to its end."""

import hashlib
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gptmill.device import RuntimeConfig, pick
from gptmill.model.objectives import LANGUAGE, Batch
from gptmill.training.guard import GuardConfig
from gptmill.training.optimizers import OptimizerConfig
from gptmill.training.plan import Plan, Step, StoppingConfig
from gptmill.training.trainer import Trainer

RUNTIME = RuntimeConfig(
    device="cpu", precision="fp32", compile=False, micro_batch="auto", recompute=False
)
CPU = pick(RUNTIME)
OPTIMIZER = OptimizerConfig(
    name="adamw",
    schedule="cosine",
    final_learning_rate=0.1,
    warmup=0.25,
    decay=0.2,
    weight_decay=0.1,
    beta_1=0.9,
    beta_2=0.95,
    clip_norm=1.0,
    muon_momentum=0.95,
)
STOPPING = StoppingConfig(patience=0, keep="last")
GUARD = GuardConfig(spike=0, action="skip", limit=1)
PLAN = Plan(
    steps=8,
    learning_rate=1e-2,
    optimizer=OPTIMIZER,
    seed=1,
    evaluate_every=3,
    sample_every=0,
    stopping=STOPPING,
    guard=GUARD,
    micro_batch=None,
)


def batch_at(index: int, *, rows: int = 4, length: int = 16, vocab_size: int = 317) -> Batch:
    """Return ids and targets that are a function of the batch's number."""
    generator = torch.Generator().manual_seed(index)
    ids = torch.randint(vocab_size, (rows, length + 1), generator=generator)
    return ids[:, :-1], ids[:, 1:]


def trainer(model: nn.Module, *, plan: Plan = PLAN, **changed: Any) -> Trainer:
    """Return a restored trainer; the fields of the plan and of the trainer are keywords."""
    planned = {name: changed.pop(name) for name in list(changed) if hasattr(PLAN, name)}
    settings = {"objective": LANGUAGE, "batches": batch_at, "device": CPU} | changed
    made = Trainer(model, plan=replace(plan, **planned), **settings)
    made.restore()
    return made


def run(model: nn.Module, **changed: Any) -> list[Step]:
    """Train to the end and return the steps."""
    return list(trainer(model, **changed).steps())


def weights_hash(model: nn.Module) -> str:
    """Return a hash of all weights."""
    tensors: list[Tensor] = list(model.state_dict().values())
    content = b"".join(tensor.detach().cpu().numpy().tobytes() for tensor in tensors)
    return hashlib.sha256(content).hexdigest()

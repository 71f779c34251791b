"""Trainings by two processes, for tasks/frame/test_ranks.py: each scenario's losses and weights.

Run as `python -m tests.support.ranks FOLDER NAME ...` with torchrun's variables
set, or without them as one process, which is the reference.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gptmill.device import Device, pick
from gptmill.generation.decoder import GenerationConfig, generate
from gptmill.model.objectives import (
    IGNORE,
    LANGUAGE,
    Batch,
    mean_language_loss,
)
from gptmill.training.distributed import World, join
from gptmill.training.plan import Step
from gptmill.training.state.store import StateStore
from tests.support.courses import (
    CPU,
    OPTIMIZER,
    RUNTIME,
    STOPPING,
    batch_at,
    trainer,
    weights_hash,
)
from tests.support.tiny import tiny_config, tiny_gpt

STEPS = 24
DRAWN = GenerationConfig(max_new_tokens=5, temperature=0.8, top_k=20, top_p=1.0)


def uneven(index: int) -> Batch:
    """Five or seven rows, which two ranks cannot share evenly, and many targets ignored."""
    ids, targets = batch_at(index, rows=5 + 2 * (index % 2))
    targets = targets.clone()
    targets[0, index % 5 :] = IGNORE
    targets[-1] = IGNORE
    return ids, targets


def hungry(module: nn.Module, batch: Batch) -> Tensor:
    """Have the second rank, where there are several, run out of memory with two rows."""
    if os.environ.get("RANK") == "1" and len(batch[0]) > 1:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] can't allocate memory: 5 bytes")
    return LANGUAGE.loss(module, batch)


# a key's bias has no effect on a loss: its gradient is rounding, which Adam makes into steps
PLAIN = tiny_config(qkv_bias=False)
LATE = {"steps": STEPS, "optimizer": replace(OPTIMIZER, warmup=0.1)}
SCENARIOS: dict[str, dict[str, Any]] = {
    "plain": {},
    "uneven": {"batches": uneven, "micro_batch": 2},
    "best": {"stopping": replace(STOPPING, keep="best"), "batches": uneven},
    "hungry": {"objective": replace(LANGUAGE, loss=hungry), "batches": partial(batch_at, rows=8)},
    "again": {"model": replace(PLAIN, drop_rate=0.1), "device": replace(CPU, recompute=True)},
    "dropped": {"model": replace(PLAIN, drop_rate=0.1)},
    "muon": {"optimizer": replace(OPTIMIZER, name="muon")},
    "untied": {"model": replace(PLAIN, tie_weights=False), "micro_batch": 1},
    "compiled": {"device": replace(CPU, compile=True), "steps": 6, "batches": uneven},
}


def course(
    world: World, folder: Path, name: str, *, stop: int = 0, device: Device = CPU
) -> dict[str, Any]:
    """Train a scenario from the state in the folder, if there is one, to its end or a stop."""
    settings = {"device": device} | LATE | SCENARIOS[name]
    model = tiny_gpt(settings.pop("model", PLAIN))
    store = StateStore(folder, every=0, keep=2) if world.rank == 0 else None
    held_out = [batch_at(1000)]
    run = trainer(
        model,
        world=world,
        store=store,
        evaluate=lambda: {"val/loss": mean_language_loss(model, held_out, device)},
        evaluate_every=5,
        sample=lambda step: str(generate(model, [[1, 2, 3]], DRAWN, stop_ids=(), seed=step)),
        sample_every=5,
        **settings,
    )
    resumed_at = run.resumed_at
    steps = list(_until(stop, run.steps()))
    plain = world.rank == 0 and not stop
    return {
        "losses": [step.loss for step in steps],
        "norms": [step.grad_norm for step in steps],
        "evaluations": [step.evaluation["val/loss"] for step in steps if step.evaluation],
        "samples": [step.sample for step in steps if step.sample],
        "batches": [step.batch for step in steps],
        "resumed_at": resumed_at,
        "micro_batches": sorted({step.micro_batch for step in steps}),
        "notes": store.notes if store else [],
        "weights": weights_hash(model.cpu()) if plain else "",
        "kind": type(model).__name__,
        "final": mean_language_loss(model, held_out, CPU) if plain else 0.0,
        "trains": sum(p.requires_grad for p in model.parameters()),
    }


def _until(stop: int, steps: Iterator[Step]) -> Iterator[Step]:
    """Break off after so many steps, as a killed run does: only what was saved is left."""
    for step in steps:
        yield step
        if step.step == stop:
            return


@contextmanager
def recorded(world: World, path: Path) -> Iterator[dict[str, Any]]:
    """Write what was found, on the first rank."""
    found: dict[str, Any] = {}
    yield found
    if world.rank == 0:
        path.write_text(json.dumps(found), encoding="utf-8")


def main(folder: Path, names: list[str]) -> None:
    """Run the scenarios, a `NAME@STEP` to that step; the words `shard` and `cuda` say how."""
    torch.set_num_threads(1)
    kind, shard = "cuda" if "cuda" in names else "cpu", "shard" in names
    with join(kind, shard=shard) as world, recorded(world, folder / "found.json") as found:
        device = pick(replace(RUNTIME, device=kind))
        for given in names:
            name, _, stop = given.partition("@")
            if name in SCENARIOS:
                at = int(stop or 0)
                found[name] = course(world, folder / name, name, stop=at, device=device)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

"""A contestant of benchmarks/training.py: a model and a loop.

Reads the number of steps from each line of standard input, trains as many steps in the model's
usual loop, and answers with a line of JSON: seconds and loss of each step, and the process's peak
memory. The process is idle between two lines; several contestants can therefore be measured in
turn.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from peers.rungs import LEARNING_RATE, VOCABULARY, WEIGHT_DECAY, plain
from torch import Tensor, nn

from gptmill.model.gpt import GPT, GPTConfig

Step = Callable[[int], float]


def shape_of(task: dict[str, Any]) -> GPTConfig:
    """Return the model shape, the same for every contestant."""
    return GPTConfig(
        vocab_size=VOCABULARY,
        context_length=task["length"],
        emb_dim=task["width"],
        n_layers=task["layers"],
        n_heads=task["heads"],
        drop_rate=task.get("drop_rate", 0.0),
        qkv_bias=True,
        tie_weights=True,
    )


def batch_at(number: int, task: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return random ids and targets (B, T), equal for all contestants."""
    generator = torch.Generator().manual_seed(number)
    size = (task["rows"], task["length"] + 1)
    ids = torch.randint(VOCABULARY, size, generator=generator)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def ours(task: dict[str, Any]) -> Step:
    """Return our own loop, as run by a stage.

    Guard, ledger and schedule are included.
    """
    from gptmill.device import RuntimeConfig, keep_freed_memory, pick
    from gptmill.model.objectives import LANGUAGE
    from gptmill.training.guard import GuardConfig
    from gptmill.training.optimizers import OptimizerConfig
    from gptmill.training.plan import Plan, StoppingConfig
    from gptmill.training.trainer import Trainer

    runtime = RuntimeConfig(
        device=task["device"],
        precision=task["precision"],
        compile=task["compile"],
        micro_batch="auto",
        recompute=task.get("recompute", False),
    )
    device = pick(runtime)
    torch.use_deterministic_algorithms(task["deterministic"])
    keep_freed_memory()
    model = GPT(shape_of(task), generator=torch.Generator().manual_seed(1))
    optimizer = OptimizerConfig(
        name="adamw",
        schedule="linear",
        final_learning_rate=1.0,
        warmup=0.0,
        decay=0.0,
        weight_decay=WEIGHT_DECAY,
        beta_1=0.9,
        beta_2=0.999,
        clip_norm=1.0,
        muon_momentum=0.95,
    )
    plan = Plan(
        steps=10**9,
        learning_rate=LEARNING_RATE,
        optimizer=optimizer,
        seed=1,
        evaluate_every=10**9,
        sample_every=0,
        stopping=StoppingConfig(patience=0, keep="last"),
        guard=GuardConfig(spike=0, action="skip", limit=1),
        micro_batch=task.get("micro_batch"),
    )
    trainer = Trainer(
        model, LANGUAGE, lambda number: batch_at(number, task), plan=plan, device=device
    )
    steps = trainer.steps()
    return lambda number: next(steps).loss


def book(task: dict[str, Any], kind: Any = None) -> nn.Module:
    """Return the book's GPT, or the class `kind`.

    The models come from llms-from-scratch and have an untied head.
    """
    from llms_from_scratch.ch04 import GPTModel

    return (kind or GPTModel)(
        {
            "vocab_size": VOCABULARY,
            "context_length": task["length"],
            "emb_dim": task["width"],
            "n_heads": task["heads"],
            "n_layers": task["layers"],
            "drop_rate": 0.0,
            "qkv_bias": True,
        }
    )


def transformers(task: dict[str, Any]) -> nn.Module:
    """Return Hugging Face's GPT-2, with our initial weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=task["length"],
        n_embd=task["width"],
        n_layer=task["layers"],
        n_head=task["heads"],
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    model = GPT2LMHeadModel(config)
    from gptmill.checkpoint.layouts import HUGGING_FACE_GPT2
    from gptmill.checkpoint.mapping import file_tensors

    weights = GPT(shape_of(task), generator=torch.Generator().manual_seed(1))
    named = file_tensors(HUGGING_FACE_GPT2, weights)
    missing = model.load_state_dict(named, strict=False).missing_keys
    assert set(missing) <= {"lm_head.weight"}, missing
    return model


def litgpt(task: dict[str, Any]) -> nn.Module:
    """Return litgpt's model in the same shape.

    The model has rotary positions and an untied head.
    """
    from litgpt import model
    from litgpt.config import Config

    return model.GPT(
        Config(
            name="bench",
            block_size=task["length"],
            vocab_size=VOCABULARY,
            padded_vocab_size=VOCABULARY,
            n_layer=task["layers"],
            n_head=task["heads"],
            n_embd=task["width"],
            bias=True,
            norm_class_name="LayerNorm",
            mlp_class_name="GptNeoxMLP",
            intermediate_size=4 * task["width"],
            parallel_residual=False,
            rotary_percentage=1.0,
            gelu_approximate="tanh",
        )
    )


def usual(build: Callable[[dict[str, Any]], nn.Module], task: dict[str, Any]) -> Step:
    """Return a plain training loop.

    A step is forward, cross-entropy, backward, clip and torch's default AdamW.
    """
    kind = task["device"]
    torch.manual_seed(1)
    model = build(task).to(kind).train()
    adamw = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    called: Any = torch.compile(model) if task["compile"] else model

    def step(number: int) -> float:
        ids, targets = (tensor.to(kind) for tensor in batch_at(number, task))
        adamw.zero_grad()
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=task["precision"] == "bf16"):
            out = called(ids)
            logits = out.logits if hasattr(out, "logits") else out
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        return float(loss.item())

    return step


PEERS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "book": book,
    "transformers": transformers,
    "litgpt": litgpt,
}


def main() -> None:
    """Answer each line of standard input."""
    task = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keep the libraries' prints out of the answers
    name = task["contestant"]
    torch.set_float32_matmul_precision("high" if task.get("tf32") else "highest")
    task["deterministic"] = task.get("deterministic", name != "ours, free")
    if name == "plain":
        step = plain(task, batch_at)
    else:
        step = usual(PEERS[name], task) if name in PEERS else ours(task)
    number = 0
    for line in sys.stdin:
        seconds, losses = [], []
        for _ in range(int(line)):
            started = time.perf_counter()
            losses.append(step(number))
            seconds.append(time.perf_counter() - started)
            number += 1
        answer = {"seconds": seconds, "losses": losses, "memory": peak_memory(task["device"])}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def peak_memory(device: str) -> int:
    """Return the process's peak memory in bytes.

    On CUDA, the peak is of GPU memory; otherwise, of resident memory.
    """
    if device == "cuda":
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()

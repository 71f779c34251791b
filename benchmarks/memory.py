"""Peak memory of a training step, with ways to reduce memory.

`PYTHONPATH=src:. python benchmarks/memory.py` runs each case in a separate process and prints the
peak resident memory of the process (torch's CPU allocator keeps no count). Each case of a step
trains two steps with GPT-2's 124M shape, bf16, 2 windows of 512, AdamW. The head is also measured
alone, because the head's logits are the largest array: 8,192 targets over 50,257 ids.
"""

import resource
import subprocess
import sys
import time

import torch
from peers import trainer

from gptmill.model import head_loss

TASK = {
    "width": 768,
    "layers": 12,
    "heads": 12,
    "rows": 2,
    "length": 512,
    "drop_rate": 0.1,
    "device": "cpu",
    "precision": "bf16",
    "compile": False,
    "deterministic": True,
}
TARGETS = 8192
WHOLE = 2**62
CASES = ("step", "step, recomputed", "step, a row at a time", "head whole", "head in parts")


def step(*, recompute: bool, micro_batch: int | None) -> str:
    """Train two steps; return the last loss."""
    train = trainer.ours({**TASK, "recompute": recompute, "micro_batch": micro_batch})
    return f"loss {[train(0), train(1)][-1]!r}"


def head(largest: int) -> str:
    """Return the head's loss and gradient norms.

    At most `largest` logits are held at once.
    """
    head_loss.LARGEST = largest
    torch.manual_seed(1)
    hidden = torch.randn(TARGETS, 768, requires_grad=True)
    weight = torch.randn(trainer.VOCABULARY, 768).mul_(0.02).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = head_loss.head_loss(hidden, weight, torch.randint(trainer.VOCABULARY, (TARGETS,)))
    to_hidden, to_weight = torch.autograd.grad(loss, (hidden, weight))
    norms = ", ".join(f"{gradient.norm().item():.6f}" for gradient in (to_hidden, to_weight))
    return f"loss {loss.item() / TARGETS:.6f}, norms of the gradients {norms}"


def measure(case: str) -> None:
    """Run a case and print the figures."""
    started = time.monotonic()
    if case.startswith("head"):
        outcome = head(WHOLE if case == "head whole" else 2**26)
    else:
        rows = 1 if "a row" in case else None
        outcome = step(recompute="recomputed" in case, micro_batch=rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{case:24} {peak:8,.0f} MiB  {time.monotonic() - started:6.1f} s  {outcome}", flush=True)


def main(arguments: list[str]) -> None:
    """Measure the named case, or each in a separate process."""
    if arguments:
        measure(arguments[0])
        return
    for case in CASES:
        subprocess.run([sys.executable, __file__, case], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])

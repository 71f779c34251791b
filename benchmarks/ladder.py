"""Speedups from a plain GPT to gptmill's own training loop.

The benchmark measures the gain of each optimization. The ten optimizations are the book's (ch05/10
of the book's repository), applied cumulatively, with the published A100 figures beside ours. The
last rows are `gptmill`'s loop with the same batch; `gptmill` keeps weights and optimizer in float32
and clips gradients. Each rung runs in a separate process.
`PYTHONPATH=src:. python benchmarks/ladder.py` needs only torch and numpy.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from contest import Contestant, machine, show_machine, warm_up
from packages import OUT
from training import MEASURED, SHAPES, row, start

FIRST: dict[str, Any] = {
    "precision": "fp32",
    "stored_mask": True,
    "tf32": False,
    "fused": False,
    "pinned": False,
    "bf16": False,
    "native": False,
    "flash": False,
    "compile": False,
    "padded": False,
}
OURS = {"contestant": "ours", "precision": "bf16"}
# a rung's name, changes, and the book's tokens a second and GB reserved on an A100 (torch 2.6)
RUNGS: list[tuple[str, dict[str, Any], tuple[int, float] | None]] = [
    ("a first GPT, fp32", {}, (12_525, 26.26)),
    ("1 causal mask built on the fly", {"stored_mask": False}, (12_526, 26.24)),
    ("2 TF32 products", {"tf32": True}, (27_648, 26.24)),
    ("3 fused AdamW", {"fused": True}, (28_399, 26.24)),
    ("4 pinned memory", {"pinned": True}, (28_402, 26.24)),
    ("5 all weights in bf16", {"bf16": True}, (45_486, 13.79)),
    ("6 torch's layer norm and GELU", {"native": True}, (55_256, 11.57)),
    ("7 flash attention, one product", {"flash": True}, (91_901, 5.90)),
    ("8 torch.compile", {"compile": True}, (112_046, 6.19)),
    ("9 vocabulary padded to 50,304", {"padded": True}, (127_345, 5.89)),
    ("10 four times the rows", {}, (142_156, 22.51)),
    ("gptmill, eager", {**OURS, "compile": False}, None),
    ("gptmill, compiled", {**OURS, "compile": True}, None),
    ("gptmill, compiled, not deterministic", {"deterministic": False}, None),
]


def main() -> None:
    """Measure all rungs; print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = ["cpu", "cuda"]
    parser.add_argument("--device", choices=kinds, default=kinds[torch.cuda.is_available()])
    parser.add_argument("--shape", choices=list(SHAPES), default=MEASURED[0])
    parser.add_argument(
        "--rungs", type=int, default=len(RUNGS), metavar="N", help="run only the first N"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="steps per round")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the figures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    where = machine(options.device)
    show_machine(where)
    on_cuda = {"rows": 8, "length": 1024} if options.device == "cuda" else {}
    task = {**SHAPES[options.shape], **on_cuda, "device": options.device, **FIRST}
    task["contestant"] = "plain"
    tasks: list[dict[str, Any]] = []
    for name, changes, _ in RUNGS[: options.rungs]:
        task = {**task, **changes}
        if name.startswith("10"):
            task["rows"] *= 4
        tasks.append(task)
    rows: list[dict[str, Any]] = []
    print(f"{'':38} {'tokens/s':>9} {'GB':>6} {'step':>6}  loss               A100: tokens/s, GB")
    for group in groups(tasks):
        running = [start(tasks[n]["contestant"], tasks[n], label=RUNGS[n][0]) for n in group]
        compiled = len(group) > 1 and tasks[group[0]]["compile"]
        if compiled:
            warm_up(running, options.steps, together=True)
        for number, contestant in zip(group, running, strict=True):
            figures = rung(contestant, options.rounds + (not compiled), options.steps)
            name, _, published = RUNGS[number]
            figures |= {"rung": name, "task": tasks[number], "published": published}
            rows.append(figures)
            show(rows)
            (options.out / "ladder.json").write_text(
                json.dumps({"machine": where, "rows": rows}, indent=1)
            )
    print(f"\n{options.out}/ladder.json")


def groups(tasks: list[dict[str, Any]]) -> list[list[int]]:
    """Return the rungs to start together.

    On a GPU the setups of all rungs share the cores, then the compilers of all compiled rungs. On
    a CPU each rung runs alone.
    """
    numbers = range(len(tasks))
    if tasks[0]["device"] != "cuda":
        return [[number] for number in numbers]
    return [[n for n in numbers if tasks[n]["compile"] == kind] for kind in (False, True)]


def rung(contestant: Contestant, rounds: int, steps: int) -> dict[str, Any]:
    """Return a rung's figures, without the first round of the process."""
    for _ in range(rounds):
        contestant.run(steps)
    contestant.stop()
    return row(contestant, contestant.task, 1e12)


def show(rows: list[dict[str, Any]]) -> None:
    """Print the last row and the speedup over the previous row."""
    last = rows[-1]
    if last["error"]:
        print(f"{last['rung']:38} {last['error'][:80]}")
        return
    before = rows[-2]["tokens_per_second"] if len(rows) > 1 else 0
    ratio = f"x{last['tokens_per_second'] / before:.2f}" if before else ""
    losses = f"{last['first_loss']:.4f} -> {last['last_loss']:.4f}"
    beside = "{:9,} {:6.2f}".format(*last["published"]) if last["published"] else ""
    print(
        f"{last['rung']:38} {last['tokens_per_second']:9,.0f} {last['peak_memory_gb']:6.2f} "
        f"{ratio:>6}  {losses:18} {beside}",
        flush=True,
    )


if __name__ == "__main__":
    main()

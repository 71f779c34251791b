"""Decoding speed of gptmill and its peers.

Each contestant is a separate process and waits while the rest are measured. Rounds alternate
between contestants, the first round is left out, and medians are compared. A new id reads every
weight once. The limit is therefore the measured memory bandwidth divided by the bytes of the
weights; each speed is also printed as a share of the limit. On a bare GPU machine:
`PYTHONPATH=src:. python benchmarks/generation.py --device cuda --peers --compiled`.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from contest import Contestant, machine, show_machine, warm_up
from contest import start as start_program
from packages import BOOK_CACHED, OUT, PEERS, installed
from peers.trainer import VOCABULARY
from torch import Tensor

from gptmill.generation.quantization import WeightFormat, quantize

SHAPES: dict[str, dict[str, int]] = {
    "124M": {"width": 768, "layers": 12, "heads": 12, "prompt": 16, "new": 200},
    "tiny": {"width": 16, "layers": 1, "heads": 1, "prompt": 4, "new": 8},  # a smoke test
}
PRECISIONS: list[Any] = ["as loaded", *get_args(WeightFormat)]
BYTES = {"as loaded": 4, "fp32": 4, "bf16": 2, "int8": 1}
GOALS = {"fp32": 1.15, "bf16": 2.0, "int8": 3.0}  # times the best peer in fp32


def start(name: str, task: dict[str, Any]) -> Contestant:
    """Start a contestant."""
    label = f"{name}, {task['precision']}"
    label += ", compiled" if task["compile"] else "" if task["cached"] else ", no cache"
    packages = None
    if name != "ours":
        packages = BOOK_CACHED if name == "book" and task["cached"] else name
    return start_program("decoder", label, {**task, "contestant": name}, packages=packages)


def contestants(
    peers: list[str], *, compiled: bool, packed: bool
) -> list[tuple[str, dict[str, Any]]]:
    """Return all contestants.

    Ours runs in each precision, and peers run with fp32 and bf16 weights. Weights `packed` for a
    CPU's matrix products do not compile.
    """
    usual = {"compile": False, "cached": True}
    entries = [("ours", {**usual, "precision": precision}) for precision in PRECISIONS]
    if compiled:
        without = {"fp32", "bf16"} if packed else {"fp32"}
        kinds = [kind for kind in PRECISIONS if kind not in without]
        entries += [("ours", {**usual, "precision": kind, "compile": True}) for kind in kinds]
    for name in peers:
        entries.append((name, {**usual, "precision": "fp32"}))
        if name == "book":
            entries.append((name, {**usual, "precision": "fp32", "cached": False}))
        else:
            entries.append((name, {**usual, "precision": "bf16"}))
    return entries


def measure(
    entries: list[tuple[str, dict[str, Any]]], *, rounds: int, together: bool
) -> Iterator[list[Contestant]]:
    """Run all contestants in turn for several rounds, set up `together` or in sequence.

    In sequence because setup takes more memory than decoding. Yields the contestants after each
    round with figures: what is measured is kept if the time runs out.
    """
    running = []
    for name, task in entries:
        running.append(start(name, task))
        if not together:
            running[-1].run(4)
    if together:
        warm_up(running, 4, together=True)
    for number in range(rounds):
        for contestant in running:
            # decoding without a cache is slow: a single round must do
            if number == 0 or contestant.task["cached"]:
                contestant.run(contestant.task["new"])
        yield running
    for contestant in running:
        contestant.stop()


def bandwidth(device: str, *, seconds: float = 3.0) -> float:
    """Return bytes read per second, from the fastest sum of a large array."""
    # larger than the caches, and on a GPU enough work to hide the time of the call
    array = torch.ones(2**30 if device == "cuda" else 2**26, device=device)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        array.sum().item()
        best = max(best, array.nbytes / (time.perf_counter() - started))
    return best


def row(contestant: Contestant, task: dict[str, Any], read: float) -> dict[str, Any]:
    """Return a contestant's figures."""
    rounds = contestant.answers[1:]
    seconds = statistics.median(answer["seconds"] for answer in rounds) if rounds else 0.0
    step = seconds / task["new"]  # includes the time of the prompt
    weights = 12 * task["layers"] * task["width"] ** 2 + VOCABULARY * task["width"]
    least = weights * BYTES[contestant.task["precision"]] / read
    return {
        "contestant": contestant.name,
        "precision": contestant.task["precision"],
        "tokens_per_second": round(task["rows"] / step, 1) if step else 0.0,
        "ms_per_token": round(1e3 * step, 2),
        "share_of_bandwidth": round(least / step, 3) if step else 0.0,
        "peak_memory_gb": round(rounds[-1]["memory"] / 1e9, 2) if rounds else 0.0,
        "seconds": [answer["seconds"] for answer in rounds],
        "ids": rounds[-1]["ids"] if rounds else "",
        "error": contestant.error,
    }


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print a table and our ratios to the best fp32 peer."""
    print(f"\n{title}\n{'contestant':32} {'tokens/s':>9} {'ms/token':>9} {'of limit':>9} {'GB':>6}")
    for r in rows:
        if r["error"]:
            print(f"{r['contestant']:32} {r['error'][:80]}")
            continue
        print(
            f"{r['contestant']:32} {r['tokens_per_second']:9,.1f} {r['ms_per_token']:9.2f} "
            f"{r['share_of_bandwidth']:9.0%} {r['peak_memory_gb']:6.2f}"
        )
    own = [r for r in rows if r["contestant"].startswith("ours") and not r["error"]]
    peers = [r for r in rows if r["precision"] == "fp32" and r not in own and not r["error"]]
    if peers:
        best = max(peers, key=lambda r: r["tokens_per_second"])
        for r in own:
            ratio = r["tokens_per_second"] / best["tokens_per_second"]
            goal = f" (goal {GOALS[r['precision']]})" if r["precision"] in GOALS else ""
            print(f"{r['contestant']}: {ratio:.2f} times {best['contestant']}{goal}")
    same = [r["ids"] for r in rows if r["contestant"] in ("ours, as loaded", "transformers, fp32")]
    if len(same) == 2 and all(same):
        print(
            f"ours and transformers chose {'the same' if same[0] == same[1] else 'different'} ids"
        )


def losses(folder: Path, text: Path, *, length: int = 512) -> None:
    """Print the cost of each precision for a checkpoint on a text.

    The cost is the loss and the share of positions with the same likeliest id.
    """
    from gptmill.checkpoint.checkpoint import load_causal_lm
    from gptmill.tokenizer.tokenizer import Tokenizer

    model, tokenizer = load_causal_lm(folder).eval(), Tokenizer.from_folder(folder)
    length = min(length, model.config.context_length)
    ids = torch.tensor(tokenizer.encode(text.read_text(encoding="utf-8")))
    print(f"{folder.name} on {text.name}, {len(ids):,} ids in windows of {length}")
    expected = Tensor()
    for precision in PRECISIONS:
        converted = model if precision == "as loaded" else quantize(model, precision)
        with torch.inference_mode():
            logits = torch.cat([converted(part[None])[0] for part in ids.split(length)])  # (T, V)
        loss = F.cross_entropy(logits[:-1], ids[1:])
        likeliest = logits.argmax(-1)
        expected = likeliest if precision == "as loaded" else expected
        same = (likeliest == expected).float().mean()
        print(f"{precision:10} loss {loss:.4f}, the likeliest id the same at {same:.1%}")


def main() -> None:
    """Run the selected measurements, print the tables and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = ["cpu", "cuda"]
    parser.add_argument("--device", choices=kinds, default=kinds[torch.cuda.is_available()])
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["124M"])
    parser.add_argument("--contexts", nargs="+", type=int, default=[256, 1024])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    parser.add_argument("--compiled", action="store_true", help="also measure ours compiled")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--loss",
        nargs=2,
        type=Path,
        metavar=("CHECKPOINT", "TEXT"),
        help="show the cost of rounding",
    )
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the figures")
    options = parser.parse_args()
    if options.loss:
        losses(*options.loss)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    peers = installed(options.peers)
    if "book" in peers:
        installed([BOOK_CACHED])
    read = bandwidth(options.device)
    where = {**machine(options.device), "read GB/s": round(read / 1e9, 1)}
    show_machine(where)
    on_cuda = options.device == "cuda"
    tasks = [
        {**SHAPES[shape], "length": context, "rows": rows, "device": options.device, "shape": shape}
        for shape, context, rows in product(options.shapes, options.contexts, options.rows)
    ]
    results: list[dict[str, Any]] = []
    # the setups and compilers of all tasks share a GPU machine's cores; a CPU's memory holds one
    for part in [tasks] if on_cuda else [[task] for task in tasks]:
        # on a GPU, time is short: peers decode only the first number of rows
        entries = [
            (name, {**task, **own})
            for task in part
            for name, own in contestants(
                peers if not on_cuda or task["rows"] == options.rows[0] else [],
                compiled=options.compiled,
                packed=not on_cuda,
            )
        ]
        before = list(results)
        for measured in measure(entries, rounds=options.rounds, together=on_cuda):
            results = list(before)
            for task in part:
                own = [one for one in measured if task.items() <= one.task.items()]
                rows = [row(contestant, task, read) for contestant in own]
                results.append({"shape": task["shape"], "task": task, "rows": rows})
            (options.out / "generation.json").write_text(
                json.dumps({"machine": where, "results": results}, indent=1)
            )
        for result in results[len(before) :]:
            task = result["task"]
            title = f"{task['shape']}, context {task['length']}, {task['rows']} rows"
            show(f"{title}, {task['prompt']} ids and {task['new']} new ones each", result["rows"])


if __name__ == "__main__":
    main()

"""Training speed of gptmill and its peers (`make bench`).

Each contestant is a separate process and waits while the rest are measured. Rounds alternate
between contestants, the first round is left out, and medians are compared. Peers run the way their
users run them, eager and compiled, and the better of the two counts. On a bare machine with only
torch and numpy, gptmill runs alone:
`PYTHONPATH=src:. python benchmarks/training.py --device cuda --peers`.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from contest import Contestant, machine, show_machine, warm_up
from contest import start as start_program
from packages import OUT, PEERS, installed
from peers.trainer import shape_of

from gptmill.training.flops import datasheet_peak, measured_peak, train_flops_per_token

SHAPES: dict[str, dict[str, int]] = {
    "124M": {"width": 768, "layers": 12, "heads": 12, "rows": 4, "length": 256},
    "small": {"width": 384, "layers": 6, "heads": 6, "rows": 8, "length": 256},
    "tiny": {"width": 16, "layers": 1, "heads": 1, "rows": 2, "length": 16},  # a smoke test
}
MEASURED = ["124M", "small"]
# as many rows as all contestants of a mode can hold side by side in 80 GB
ON_CUDA = {"124M": {"rows": 8, "length": 1024}, "small": {"rows": 16, "length": 1024}}
MODES = ["eager", "compiled"]


def start(name: str, task: dict[str, Any], *, label: str | None = None) -> Contestant:
    """Start a contestant."""
    packages = name if name in PEERS else None
    task = {**task, "contestant": name}
    return start_program("trainer", label or f"{name}, {mode(task)}", task, packages=packages)


def mode(task: dict[str, Any]) -> str:
    """Return a contestant's mode: eager or compiled."""
    return "compiled" if task["compile"] else "eager"


def measure(
    names: list[str], kind: str, task: dict[str, Any], *, rounds: int, steps: int
) -> list[Contestant]:
    """Run the contestants of a mode in turn.

    All contestants of both modes would not fit into memory.
    """
    running = [start(name, {**task, "compile": kind == "compiled"}) for name in names]
    warm_up(running, 2, together=task["device"] == "cuda")
    for _ in range(rounds):
        for contestant in running:
            contestant.run(steps)
    for contestant in running:
        contestant.stop()
    return running


def row(contestant: Contestant, task: dict[str, Any], ceiling: float) -> dict[str, Any]:
    """Return a contestant's figures."""
    seconds = [second for answer in contestant.answers[1:] for second in answer["seconds"]]
    losses = [loss for answer in contestant.answers for loss in answer["losses"]]
    tokens = task["rows"] * task["length"]
    rate = tokens / statistics.median(seconds) if seconds else 0.0
    flops = train_flops_per_token(shape_of(task), task["length"])
    on_cuda = task["device"] == "cuda"
    datasheet = datasheet_peak(torch.cuda.get_device_name()) if on_cuda else None
    return {
        "contestant": contestant.task["contestant"],
        "mode": mode(contestant.task),
        "tokens_per_second": round(rate, 1),
        "peak_memory_gb": round(contestant.answers[-1]["memory"] / 1e9, 2) if losses else 0.0,
        "share_of_ceiling": round(rate * flops / ceiling, 3),
        "mfu": round(rate * flops / datasheet, 3) if datasheet else None,  # of the datasheet's bf16
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "losses": losses,
        "error": contestant.error,
    }


def main() -> None:
    """Run the selected measurements; print tables, write JSON and a plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = ["cpu", "cuda"]
    parser.add_argument("--device", choices=kinds, default=kinds[torch.cuda.is_available()])
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=MEASURED)
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="steps per round")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the figures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    names = ["ours", "ours, free", *installed(options.peers)]
    where = machine(options.device)
    show_machine(where)
    results = []
    for precision in options.precisions:
        ceiling = measured_peak(options.device, precision, seconds=2)
        print(f"matmul ceiling in {precision}: {ceiling / 1e9:,.0f} GFLOP/s")
        for shape in options.shapes:
            task = {**SHAPES[shape], **(ON_CUDA.get(shape, {}) if options.device == "cuda" else {})}
            task |= {"device": options.device, "precision": precision}
            rows: list[dict[str, Any]] = []
            results.append({"shape": shape, "precision": precision, "task": task, "rows": rows})
            for kind in options.modes:
                finished = measure(names, kind, task, rounds=options.rounds, steps=options.steps)
                rows += [row(contestant, task, ceiling) for contestant in finished]
                (options.out / "training.json").write_text(
                    json.dumps({"machine": where, "results": results}, indent=1)
                )
            show(shape, precision, rows)
    plot(results, options.out)


def show(shape: str, precision: str, rows: list[dict[str, Any]]) -> None:
    """Print a table, and our ratio to the best peer."""
    print(f"\n{shape}, {precision}")
    print(f"{'contestant':14} {'mode':9} {'tokens/s':>9} {'GB':>6} {'ceiling':>8}  loss")
    for r in rows:
        if r["error"]:
            print(f"{r['contestant']:14} {r['mode']:9} {r['error'][:70]}")
            continue
        print(
            f"{r['contestant']:14} {r['mode']:9} {r['tokens_per_second']:9,.0f} "
            f"{r['peak_memory_gb']:6.2f} {r['share_of_ceiling']:8.1%}  "
            f"{r['first_loss']:.4f} -> {r['last_loss']:.4f}"
        )
    own = max((r for r in rows if r["contestant"] == "ours"), key=lambda r: r["tokens_per_second"])
    free = [r for r in rows if r["contestant"] == "ours, free" and r["mode"] == own["mode"]]
    if free and not free[0]["error"]:
        cost = free[0]["tokens_per_second"] / own["tokens_per_second"] - 1
        print(f"nondeterministic algorithms (free) change the speed by {cost:+.1%}")
    peers = [r for r in rows if r["contestant"] in PEERS and not r["error"]]
    if peers:
        best = max(peers, key=lambda r: r["tokens_per_second"])
        ratio = own["tokens_per_second"] / best["tokens_per_second"]
        print(f"ours, {own['mode']}: {ratio:.2f} times {best['contestant']}, {best['mode']}")
    same = [r for r in peers if r["contestant"] == "transformers"]
    if same:
        pairs = list(zip(own["losses"], same[0]["losses"], strict=False))
        gap = max(abs(own_loss - peer_loss) for own_loss, peer_loss in pairs)
        print(
            f"loss curves, ours and transformers from equal weights: at most {gap:.4f} apart "
            f"in {len(pairs)} steps"
        )


def plot(results: list[dict[str, Any]], folder: Path) -> None:
    """Plot the figures as bars, if matplotlib is installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(5 * len(results), 4), layout="constrained")
    for axes, result in zip(
        figure.subplots(1, len(results), squeeze=False)[0], results, strict=True
    ):
        rows = [r for r in result["rows"] if not r["error"]]
        axes.barh(
            [f"{r['contestant']} {r['mode']}" for r in rows],
            [r["tokens_per_second"] for r in rows],
            color=["tab:gray" if r["contestant"] in PEERS else "tab:blue" for r in rows],
        )
        axes.set_title(f"{result['shape']}, {result['precision']}")
        axes.set_xlabel("tokens a second")
    figure.savefig(folder / "training.png")
    print(f"\n{folder}/training.json and training.png")


if __name__ == "__main__":
    main()

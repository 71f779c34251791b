"""Training steps a second, ours beside its peers, in one run: `make bench`.

Each contestant is a process of its own that waits while the others are measured; rounds go in
turn, the first is left out, and medians are compared. Peers run as their users run them, eager
and compiled, and the better of the two counts. On a bare machine with torch and numpy it runs
alone, without the peers: `PYTHONPATH=src:. python benchmarks/training.py --device cuda --peers`.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptmill.device import RuntimeConfig, pick
from gptmill.flops import measured_peak, train_flops_per_token
from peers.worker import shape_of
from tasks._environment import QUIET

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / ".state" / "bench"
WORKER = ROOT / "benchmarks" / "peers" / "worker.py"
# a peer's folder of packages that our own environment lacks, and what is put there
PEERS = {
    "book": ["llms-from-scratch==1.0.19"],
    "litgpt": [
        "litgpt==0.5.13",
        "lightning<2.7",
        "pytorch-lightning<2.7",
        "lightning-utilities",
        "torchmetrics",
        "jsonargparse",
        "huggingface-hub<1",
        "transformers<5",
        "tokenizers<0.23",
    ],
    "transformers": [],
}
SHAPES: dict[str, dict[str, int]] = {
    "124M": {"width": 768, "layers": 12, "heads": 12, "rows": 4, "length": 256},
    "small": {"width": 384, "layers": 6, "heads": 6, "rows": 8, "length": 256},
    "tiny": {"width": 16, "layers": 1, "heads": 1, "rows": 2, "length": 16},  # does it run at all
}
MEASURED = ["124M", "small"]
ON_CUDA = {"124M": {"rows": 32, "length": 1024}, "small": {"rows": 64, "length": 1024}}
MODES = ["eager", "compiled"]
# each row adds its levers to those of the row before; what they are worth is the next row's ratio
LADDER: list[tuple[str, dict[str, Any]]] = [
    ("fp32, eager, 4 rows", {"precision": "fp32", "compile": False, "rows": 4}),
    ("TF32 products", {"tf32": True}),
    ("bf16", {"precision": "bf16"}),
    ("torch.compile", {"compile": True}),
    ("more rows a step", {"rows": 32}),
    ("algorithms that are not deterministic", {"deterministic": False}),
]


@dataclass
class Contestant:
    """A running contestant and what was measured of it so far."""

    name: str
    compiled: bool
    process: subprocess.Popen[str]
    seconds: list[list[float]]
    losses: list[float]
    memory: int = 0
    error: str = ""

    def run(self, steps: int) -> None:
        """Have it do some steps; a contestant that dies is out, and says why."""
        if self.error:
            return
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # its last words tell
        line = self.process.stdout.readline()
        if not line:
            log = OUT / f"{self.name}-{'compiled' if self.compiled else 'eager'}.log"
            self.error = (log.read_text(errors="replace").strip().splitlines() or ["it died"])[-1]
            return
        answer = json.loads(line)
        self.seconds.append(answer["seconds"])
        self.losses += answer["losses"]
        self.memory = answer["memory"]


def install(name: str) -> str | None:
    """Put a peer's packages below .state/bench/, once; return why that failed."""
    folder = OUT / "packages" / name
    done = folder.with_suffix(".done")
    if not PEERS[name] or done.exists():
        return None
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    found = subprocess.run([*command, *PEERS[name]], capture_output=True, text=True)
    if found.returncode:
        return found.stderr.strip().splitlines()[-1]
    done.touch()
    return None


def start(name: str, task: dict[str, Any]) -> Contestant:
    """Start a contestant; it sets itself up while it is waited for."""
    places = [OUT / "packages" / name, ROOT / "src"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(place) for place in places)}
    if name not in PEERS:
        environment["THP_MEM_ALLOC_ENABLE"] = QUIET["THP_MEM_ALLOC_ENABLE"]
    log = (OUT / f"{name}-{'compiled' if task['compile'] else 'eager'}.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(WORKER), json.dumps({**task, "contestant": name})],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=environment,
    )
    return Contestant(name, task["compile"], process, [], [])


def measure(
    names: list[str], modes: list[str], task: dict[str, Any], *, rounds: int, steps: int
) -> list[Contestant]:
    """Run contestants in turn, all of one mode at a time: they have to fit into memory."""
    found = []
    for mode in modes:
        here = [start(name, {**task, "compile": mode == "compiled"}) for name in names]
        for contestant in here:
            contestant.run(2)
        for _ in range(rounds):
            for contestant in here:
                contestant.run(steps)
        for contestant in here:
            contestant.process.kill()
            contestant.process.communicate()
        found += here
    return found


def ladder(device: str, *, rounds: int, steps: int) -> None:
    """Print what each lever is worth, one added to the next, on the larger shape."""
    task = {**SHAPES["124M"], **(ON_CUDA["124M"] if device == "cuda" else {}), "device": device}
    before = 0.0
    for name, changes in LADDER:
        if device == "cpu" and {"tf32", "rows"} & set(changes) and "precision" not in changes:
            continue
        task |= changes
        contestant = start("ours", task)
        for _ in range(rounds + 1):
            contestant.run(steps)
        contestant.process.kill()
        contestant.process.communicate()
        if contestant.error:
            print(f"{name:40} {contestant.error[:60]}")
            continue
        found = row(contestant, task, 1e12)
        rate = found["tokens_per_second"]
        ratio = f"{rate / before:5.2f} times the row before" if before else ""
        print(f"{name:40} {rate:10,.0f} tokens/s {found['peak_memory_gb']:6.2f} GB {ratio}")
        before = rate


def row(contestant: Contestant, task: dict[str, Any], ceiling: float) -> dict[str, Any]:
    """Return a contestant's figures."""
    seconds = [second for part in contestant.seconds[1:] for second in part]
    tokens = task["rows"] * task["length"]
    rate = tokens / statistics.median(seconds) if seconds else 0.0
    flops = train_flops_per_token(shape_of(task), task["length"])
    return {
        "contestant": contestant.name,
        "mode": "compiled" if contestant.compiled else "eager",
        "tokens_per_second": round(rate, 1),
        "peak_memory_gb": round(contestant.memory / 1e9, 2),
        "share_of_ceiling": round(rate * flops / ceiling, 3),
        "first_loss": contestant.losses[0] if contestant.losses else None,
        "last_loss": contestant.losses[-1] if contestant.losses else None,
        "losses": contestant.losses,
        "error": contestant.error,
    }


def main() -> None:
    """Measure what is asked for, print the tables and write JSON and a plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = ["cpu", "cuda"]
    parser.add_argument("--device", choices=kinds, default=kinds[torch.cuda.is_available()])
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=MEASURED)
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="of a round")
    parser.add_argument("--ladder", action="store_true", help="what each lever is worth, instead")
    parser.add_argument("--out", type=Path, default=OUT, help="where the figures are written")
    options = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    if options.ladder:
        ladder(options.device, rounds=options.rounds, steps=options.steps)
        return
    names = ["ours", "ours, free"]
    for name in options.peers:
        fault = install(name)
        if fault is None:
            names.append(name)
        else:
            print(f"left out: {name}, which could not be installed ({fault})")
    machine = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if options.device == "cuda" else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items() if value))
    results = []
    for precision in options.precisions:
        ceiling = measured_peak(options.device, precision, seconds=2)
        print(f"matmul ceiling in {precision}: {ceiling / 1e9:,.0f} GFLOP/s")
        for shape in options.shapes:
            task = {**SHAPES[shape], **(ON_CUDA.get(shape, {}) if options.device == "cuda" else {})}
            task |= {"device": options.device, "precision": precision}
            found = measure(names, options.modes, task, rounds=options.rounds, steps=options.steps)
            rows = [row(contestant, task, ceiling) for contestant in found]
            results.append({"shape": shape, "precision": precision, "task": task, "rows": rows})
            show(shape, precision, rows)
            (options.out / "training.json").write_text(
                json.dumps({"machine": machine, "results": results}, indent=1)
            )
    plot(results, options.out)


def show(shape: str, precision: str, rows: list[dict[str, Any]]) -> None:
    """Print one table, and our ratio to the best peer."""
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
        print(f"algorithms that are not deterministic (free) change its speed by {cost:+.1%}")
    peers = [r for r in rows if r["contestant"] in PEERS and not r["error"]]
    if peers:
        best = max(peers, key=lambda r: r["tokens_per_second"])
        ratio = own["tokens_per_second"] / best["tokens_per_second"]
        print(f"ours, {own['mode']}: {ratio:.2f} times {best['contestant']}, {best['mode']}")
    same = [r for r in peers if r["contestant"] == "transformers"]
    if same:
        pairs = list(zip(own["losses"], same[0]["losses"], strict=False))
        apart = max(abs(one - other) for one, other in pairs)
        print(
            f"loss curves, ours and transformers from equal weights: at most {apart:.4f} apart "
            f"in {len(pairs)} steps"
        )


def plot(results: list[dict[str, Any]], folder: Path) -> None:
    """Draw the figures as bars, where matplotlib is there."""
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


def cpu_name() -> str:
    """Return the processor's name and what torch may use of it."""
    runtime = RuntimeConfig(
        device="cpu", precision="fp32", compile=False, micro_batch="auto", recompute=False
    )
    return pick(runtime).model


if __name__ == "__main__":
    main()

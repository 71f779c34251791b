"""Speed beside busy processes, by how long OpenMP's threads spin.

A thread that waits for the others at the end of a parallel region spins, then sleeps. Spinning is
fast on idle cores and takes the cores from the threads waited for on busy cores. Each contestant
is our training loop or decoder in a separate process with one setting of the environment; every
round runs all contestants alone, then beside processes that count in an endless loop.
`PYTHONPATH=src:. python benchmarks/waiting.py` takes about 3 minutes.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from contest import HUGE_PAGES, OUT, Contestant, machine, show_machine, start

SETTINGS = {
    "torch's default": {},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    **{f"GOMP_SPINCOUNT={n}": {"GOMP_SPINCOUNT": n} for n in ("0", "1000", "10000", "30000")},
}
SHAPES = {
    "small": {"width": 384, "layers": 6, "heads": 6},
    "tiny": {"width": 16, "layers": 1, "heads": 1},  # a smoke test
}
USUAL = {"contestant": "ours", "device": "cpu", "compile": False}
# program, task, and work per round: training steps or new ids
WORK: dict[str, tuple[str, dict[str, Any], int]] = {
    "training": ("trainer", {"rows": 2, "length": 128, "precision": "bf16"}, 2),
    "decoding": (
        "decoder",
        {"rows": 1, "length": 256, "prompt": 16, "precision": "fp32", "cached": True},
        40,
    ),
}


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep `count` processes counting in an endless loop."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def measure(
    contestants: list[Contestant], amount: int, *, rounds: int, loops: list[int]
) -> dict[int, list[list[float]]]:
    """Return milliseconds per unit of work, by busy processes, contestant and round."""
    took: dict[int, list[list[float]]] = {count: [[] for _ in contestants] for count in loops}
    for contestant in contestants:
        contestant.run(amount)
    for _ in range(rounds):
        for count in loops:
            with busy(count):
                for number, contestant in enumerate(contestants):
                    started = time.perf_counter()
                    contestant.run(amount)
                    took[count][number].append(1e3 * (time.perf_counter() - started) / amount)
    return took


def main() -> None:
    """Measure training and decoding; print tables and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="small")
    parser.add_argument("--work", nargs="+", choices=list(WORK), default=list(WORK))
    parser.add_argument("--busy", nargs="+", type=int, default=[0, 2, 8], help="endless loops")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the figures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    where = machine("cpu")
    show_machine(where)
    results: list[dict[str, Any]] = []
    for work in options.work:
        program, task, amount = WORK[work]
        task = {**USUAL, **SHAPES[options.shape], **task}
        contestants = [
            start(program, f"{work}, {name}", task, environment={**HUGE_PAGES, **setting})
            for name, setting in SETTINGS.items()
        ]
        took = measure(contestants, amount, rounds=options.rounds, loops=options.busy)
        for contestant in contestants:
            contestant.stop()
        unit = "step" if work == "training" else "new id"
        print(f"\n| {work}, ms per {unit} | {' | '.join(f'{n} busy' for n in options.busy)} |")
        print("|---|" + "---|" * len(options.busy))
        for number, (name, contestant) in enumerate(zip(SETTINGS, contestants, strict=True)):
            medians = [statistics.median(took[count][number]) for count in options.busy]
            row = {"work": work, "setting": name, "error": contestant.error}
            row["ms"] = dict(zip(options.busy, medians, strict=True))
            # equal bytes for every setting
            row["made"] = contestant.answers[-1].get("losses") or contestant.answers[-1]["ids"]
            results.append(row)
            print(f"| {name} | {' | '.join(f'{ms:.1f}' for ms in medians)} |", flush=True)
        content = json.dumps({"machine": where, "results": results}, indent=1)
        (options.out / "waiting.json").write_text(content)


if __name__ == "__main__":
    main()

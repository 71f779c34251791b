"""Read damaged files for SECONDS, from SEED on; print counts per reader and outcome."""

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.support.fuzz.readers import READERS
from tests.support.fuzz.running import try_reader

CASES = 50


def main(seconds: float, seed: int, names: list[str]) -> int:
    """Run all readers in turn until the time is over; return the number of kinds of faults."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in names or READERS}
    faults: dict[str, str] = {}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name in counts:
            with tempfile.TemporaryDirectory() as folder:
                outcomes = try_reader(name, Path(folder) / "it", seed, range(CASES))
            counts[name] += outcomes.counts
            faults = {**outcomes.faults, **faults}
        seed += 1
    for name, found in counts.items():
        print(f"{name:28}", "  ".join(f"{kind} {n:,}" for kind, n in sorted(found.items())))
    for fault, case in sorted(faults.items()):
        print(f"{case}\n    {fault}")
    print(f"{sum(map(Counter.total, counts.values())):,} files, {len(faults)} kinds of faults")
    return min(len(faults), 100)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))

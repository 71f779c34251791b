"""The benchmark runs: what it measures is for people, and asserted nowhere."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tasks._environment import ROOT

FAST = ["--shapes", "tiny", "--precisions", "fp32", "--modes", "eager", "--steps", "2"]


def test_ours_is_measured_beside_a_peer_from_equal_weights(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "benchmarks/training.py",
            *FAST,
            "--peers",
            "transformers",
            "--out",
            str(tmp_path),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "src:.", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "training.json").read_text(encoding="utf-8"))["results"][0][
        "rows"
    ]
    assert [row["contestant"] for row in rows] == ["ours", "ours, free", "transformers"]
    assert [row["error"] for row in rows] == ["", "", ""]
    assert all(row["tokens_per_second"] > 0 for row in rows)
    apart = re.search(r"equal weights: at most ([\d.]+) apart in 8 steps", done.stdout)
    assert apart is not None
    assert float(apart[1]) <= 0.001
    assert re.search(r"ours, eager: [\d.]+ times transformers, eager", done.stdout)

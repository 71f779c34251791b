"""The benchmark runs: what it measures is for people, and asserted nowhere."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gptmill.checkpoint.checkpoint import save_causal_lm
from tasks.project.environment import ROOT
from tests.support.tiny import TINY_TEXT, tiny_gpt, tiny_tokenizer

FAST = ["--shapes", "tiny", "--precisions", "fp32", "--modes", "eager", "--steps", "2"]


def test_ours_is_measured_beside_a_peer_from_equal_weights(tmp_path: Path) -> None:
    done = bench("training.py", *FAST, "--peers", "transformers", "--out", str(tmp_path))
    rows = json.loads((tmp_path / "training.json").read_text(encoding="utf-8"))["results"][0][
        "rows"
    ]
    assert [row["contestant"] for row in rows] == ["ours", "ours, free", "transformers"]
    assert [row["error"] for row in rows] == ["", "", ""]
    assert all(row["tokens_per_second"] > 0 for row in rows)
    apart = re.search(r"equal weights: at most ([\d.]+) apart in 8 steps", done)
    assert apart is not None
    assert float(apart[1]) <= 0.001
    assert re.search(r"ours, eager: [\d.]+ times transformers, eager", done)


def test_decoders_are_measured_and_choose_the_same_ids(tmp_path: Path) -> None:
    fast = ["--shapes", "tiny", "--contexts", "32", "--rows", "1", "3", "--rounds", "2"]
    done = bench("generation.py", *fast, "--peers", "transformers", "--out", str(tmp_path))
    results = json.loads((tmp_path / "generation.json").read_text(encoding="utf-8"))["results"]
    assert [result["task"]["rows"] for result in results] == [1, 3]
    for result in results:
        assert [row["error"] for row in result["rows"]] == [""] * 6
        assert all(row["tokens_per_second"] > 0 for row in result["rows"])
    assert done.count("ours and transformers chose the same ids") == 2
    assert re.search(r"ours, int8: [\d.]+ times transformers, fp32 \(goal 3.0\)", done)


def test_what_rounding_costs_is_shown(tmp_path: Path) -> None:
    save_causal_lm(tmp_path, tiny_gpt(), tiny_tokenizer())
    (tmp_path / "text").write_text(TINY_TEXT, encoding="utf-8")
    done = bench("generation.py", "--loss", str(tmp_path), str(tmp_path / "text"))
    assert re.findall(r"^([a-z\d ]+?) +loss \d", done, re.M) == [
        "as loaded",
        "fp32",
        "bf16",
        "int8",
    ]


def test_levers_are_pulled_one_after_the_other_and_change_time_alone(tmp_path: Path) -> None:
    fast = ["--shape", "tiny", "--rungs", "8", "--rounds", "1", "--steps", "2"]
    bench("ladder.py", *fast, "--device", "cpu", "--out", str(tmp_path))
    rows = json.loads((tmp_path / "ladder.json").read_text(encoding="utf-8"))["rows"]
    assert [row["error"] for row in rows] == [""] * 8
    assert [row["published"][0] for row in rows[:2]] == [12_525, 12_526]
    for row in rows[1:]:
        near = 0.2 if row["task"]["bf16"] else 1e-4
        assert row["losses"] == pytest.approx(rows[0]["losses"], abs=near)


def bench(name: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, f"benchmarks/{name}", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "src:.", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

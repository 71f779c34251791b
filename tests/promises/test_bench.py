"""The benchmark runs: what it measures is for people, and asserted nowhere."""

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

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


@pytest.mark.slow
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


@pytest.mark.slow
def test_levers_are_pulled_one_after_the_other_and_change_time_alone(tmp_path: Path) -> None:
    fast = ["--shape", "tiny", "--rungs", "8", "--rounds", "1", "--steps", "2"]
    bench("ladder.py", *fast, "--device", "cpu", "--out", str(tmp_path))
    rows = json.loads((tmp_path / "ladder.json").read_text(encoding="utf-8"))["rows"]
    assert [row["error"] for row in rows] == [""] * 8
    assert [row["published"][0] for row in rows[:2]] == [12_525, 12_526]
    for row in rows[1:]:
        near = 0.2 if row["task"]["bf16"] else 1e-4
        assert row["losses"] == pytest.approx(rows[0]["losses"], abs=near)


def imported(path: Path, seen: set[Path]) -> set[str]:
    """Return the packages that a file imports when loaded, through this project's files too."""
    seen.add(path)
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    found: set[str] = set()
    for name in names:
        top, path_of = name.split(".")[0], f"{name.replace('.', '/')}.py"
        folders = [ROOT / folder for folder in ("src", ".", "benchmarks")]
        for file in (folder / path_of for folder in folders):
            if file.exists() and file not in seen:
                found |= imported(file, seen)
        if not any(
            (folder / top).is_dir() or (folder / f"{top}.py").exists() for folder in folders
        ):
            found.add(top)
    return found - sys.stdlib_module_names


def test_a_bare_machine_gets_every_package_that_its_benchmarks_and_tests_import() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import gpu
        import packages
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    programs = [f"benchmarks/{name}.py" for name in ("gpu", "training", "generation", "ladder")]
    peers = [f"benchmarks/peers/{name}.py" for name in ("trainer", "decoder")]
    files = [*programs, *peers, *gpu.BY_TESTS, "tests/conftest.py"]
    seen: set[Path] = set()
    needed = set().union(*(imported(ROOT / file, seen) for file in files))
    plain = {name.lower().replace("_", "-") for name in packages.COMMON}
    assert needed - {"torch", "numpy", "tiktoken_ext"} <= plain | {
        name.replace("-", "_") for name in plain
    }
    # and what these packages need themselves; typer is for the command line of transformers
    plain |= {"typer"}
    for name in plain - {"typer"}:
        for line in importlib.metadata.requires(name) or []:
            one = Requirement(line)
            if one.marker is None or one.marker.evaluate({"extra": "", "python_version": "3.12"}):
                assert one.name.lower().replace("_", "-") in plain | {"torch", "numpy"}, line
    marked = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if "pytest.mark.gpu" in path.read_text(encoding="utf-8") and path != Path(__file__)
    }
    two_gpus = {"tests/tasks/frame/test_ranks.py"}
    assert marked == {*gpu.BY_TESTS, *two_gpus}


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

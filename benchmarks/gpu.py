"""All parts of benchmarks/gpu.sh: training, decoding, the ladder, equal bytes.

Each part is a program with a time limit. A part that fails or runs out of time does not stop the
others: the figures measured until then are kept, the state of each part is printed at the end, and
the exit status is 1. FOLDER of `--out` gets gpu.md (rows for benchmarks/README.md), gpu.json and
gpu.log (all output), rewritten after each part. Only the standard library is imported here.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packages import ROOT, WHEELS, folder, unpack

SECONDS = 400
"""All parts together: the last parts get what the first ones left."""
BY_TESTS = ["tests/promises/test_gpu.py", "tests/library/training/test_flops.py"]
MACHINE = """
import json, os, platform, subprocess, sys, numpy, torch
cuda = torch.cuda.is_available()
query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
facts = {
    "gpu": subprocess.check_output(query, text=True).strip() if cuda else "none",
    "cores": os.cpu_count(),
    "python": platform.python_version(),
    "torch": f"{torch.__version__} (CUDA {torch.version.cuda})",
    "numpy": numpy.__version__,
}
print(facts)
open(sys.argv[2], "w").write(json.dumps(facts))
sys.exit(sys.argv[1] == "cuda" and not cuda)
"""
Table = tuple[str, list[str]]
"""A heading and rows of markdown, the header first."""


@dataclass
class Part:
    """A part's program, time limit and outcome."""

    name: str
    words: list[str]
    seconds: float
    tables: Callable[[Path], list[Table]]
    took: float = 0.0
    fault: str = ""
    found: list[Table] = field(default_factory=list)


def markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    """Return a markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def share(value: float | None) -> str:
    """Return a share in percent."""
    return "" if value is None else f"{value:.1%}"


def content(file: Path) -> Any:
    """Return a part's JSON, or nothing if the part wrote none."""
    return json.loads(file.read_text()) if file.exists() else {"results": [], "rows": []}


def trained(row: dict[str, Any]) -> list[str]:
    """Return the cells that training and the ladder share."""
    if row["error"]:
        return [f"failed: {row['error'][:80]}", "", "", ""]
    losses = f"{row['first_loss']:.4f} to {row['last_loss']:.4f}"
    speed = f"{row['tokens_per_second']:,.0f}"
    return [speed, share(row["mfu"]), f"{row['peak_memory_gb']:.1f}", losses]


def training_tables(work: Path) -> list[Table]:
    """Return training speed and MFU, a table per shape and precision."""
    tables = []
    for result in content(work / "training.json")["results"]:
        task = result["task"]
        rows = [
            [f"{row['contestant']}, {row['mode']}", *trained(row), share(row["share_of_ceiling"])]
            for row in result["rows"]
        ]
        header = ["", "tokens/s", "MFU", "GB", "loss", "of the measured matmul ceiling"]
        title = f"{result['shape']}, {result['precision']}, {task['rows']} x {task['length']} ids"
        tables.append((f"Training, {title}", markdown(header, rows)))
    return tables


def ladder_tables(work: Path) -> list[Table]:
    """Return the book's ten optimizations."""
    rows = []
    for row in content(work / "ladder.json")["rows"]:
        published = "{:,} ({} GB)".format(*row["published"]) if row["published"] else ""
        rows.append([row["rung"], str(row["task"]["rows"]), *trained(row), published])
    header = ["", "rows", "tokens/s", "MFU", "GB", "loss", "the book, A100"]
    return [("The book's ten optimizations", markdown(header, rows))] if rows else []


def decoding_tables(work: Path) -> list[Table]:
    """Return decoding speed as a share of memory bandwidth, a table per task."""
    tables = []
    figures = content(work / "generation.json")
    for result in figures["results"]:
        task = result["task"]
        rows = [
            [row["contestant"], f"failed: {row['error'][:80]}", "", "", ""]
            if row["error"]
            else [
                row["contestant"],
                f"{row['tokens_per_second']:,.1f}",
                f"{row['ms_per_token']:.2f}",
                share(row["share_of_bandwidth"]),
                row["ids"],
            ]
            for row in result["rows"]
        ]
        read = figures["machine"]["read GB/s"]
        header = ["", "ids/s", "ms per id", f"of {read:,.0f} GB/s", "hash of the ids"]
        title = f"{result['shape']}, context {task['length']}, {task['rows']} rows"
        tables.append((f"Decoding, {title}", markdown(header, rows)))
    return tables


def test_tables(work: Path) -> list[Table]:
    """Return each GPU test's outcome, equal bytes of resumed trainings among them."""
    file = work / "tests.xml"
    rows = []
    for case in ET.parse(file).iter("testcase") if file.exists() else ():
        bad = [child for child in case if child.tag in ("failure", "error", "skipped")]
        outcome = bad[0].tag if bad else "passed"
        rows.append([str(case.get("name")), outcome, f"{float(case.get('time') or 0):.1f}"])
    header = ["test", "outcome", "s"]
    return [("GPU tests", markdown(header, sorted(rows)))] if rows else []


def parts(options: argparse.Namespace, work: Path) -> list[Part]:
    """Return all parts, the most important first."""
    python, device, out = sys.executable, ["--device", options.device], ["--out", str(work)]
    slow = 5.0 if options.tiny else 1.0
    tiny = {
        "training": ["--shapes", "tiny", "--precisions", "fp32", "--rounds", "1", "--steps", "2"],
        "decoding": ["--shapes", "tiny", "--contexts", "32", "--rows", "1", "2", "--rounds", "1"],
        "ladder": ["--shape", "tiny", "--rounds", "1", "--steps", "1"],
    }
    whole = {
        "training": ["--shapes", "124M", "--precisions", "bf16"],
        "decoding": ["--contexts", "1024", "--rows", "1", "8", "--rounds", "1"],
        "ladder": ["--rounds", "1"],
    }
    words = tiny if options.tiny else whole
    marked = "gpu" if options.device == "cuda" else "not gpu and not slow"
    tests = ["-m", "pytest", "-m", marked, *BY_TESTS, f"--junitxml={work}/tests.xml", "-n4"]
    tests += [
        word for name in ("xdist", "pytest_timeout", "no:cacheprovider") for word in ("-p", name)
    ]
    tests += ["-W", "ignore::DeprecationWarning"]  # torch's own, while it compiles

    def program(name: str, part: str, *more: str) -> list[str]:
        return [python, f"benchmarks/{name}.py", *words[part], *more, *device, *out]

    return [
        Part(
            "machine",
            [python, "-c", MACHINE, options.device, str(work / "machine.json")],
            60 * slow,
            lambda _: [],
        ),
        Part("tests", [python, *tests], 60 * slow, test_tables),
        Part("training", program("training", "training"), 150 * slow, training_tables),
        Part(
            "decoding", program("generation", "decoding", "--compiled"), 170 * slow, decoding_tables
        ),
        Part("ladder", program("ladder", "ladder"), 120 * slow, ladder_tables),
    ]


def run(part: Part, *, log: Path, work: Path, seconds: float) -> None:
    """Run a part; end it and all its processes at the limit."""
    paths = ["src", ".", "benchmarks", str(folder("common"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    # no part waits for a network that is not there
    environment |= {"HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1", "TOKENIZERS_PARALLELISM": "false"}
    # the machine may have pytest plugins whose warnings are errors here
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    started = time.monotonic()
    with log.open("a") as file:
        print(f"\n==== {part.name}", file=file, flush=True)
        process = subprocess.Popen(
            part.words, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
        )
        try:
            status = process.wait(timeout=max(seconds, 0))
            part.fault = f"failed with status {status}" if status else ""
        except subprocess.TimeoutExpired:
            part.fault = f"cut off after {seconds:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):  # no process of the part is left
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    part.took = time.monotonic() - started
    part.found = part.tables(work)
    failed = sum("failed: " in row for _, rows in part.found for row in rows)
    if failed and not part.fault:
        part.fault = f"{failed} rows failed"


def write(out: Path, done: list[Part], work: Path) -> None:
    """Write the tables and all figures measured so far."""
    facts = json.loads(file.read_text()) if (file := work / "machine.json").exists() else {}
    lines = [", ".join(f"{name} {value}" for name, value in facts.items()), ""]
    lines += ["| part | s | |", "|---|---|---|"]
    lines += [f"| {part.name} | {part.took:.0f} | {part.fault or 'done'} |" for part in done]
    for part in done:
        for title, rows in part.found:
            lines += ["", f"## {title}", "", *rows]
    (out / "gpu.md").write_text("\n".join(lines) + "\n")
    figures = {
        "parts": {part.name: {"seconds": part.took, "fault": part.fault} for part in done},
        **{file.stem: json.loads(file.read_text()) for file in sorted(work.glob("*.json"))},
    }
    (out / "gpu.json").write_text(json.dumps(figures, indent=1) + "\n")


def main() -> int:
    """Run all parts; return 1 if a part failed or was cut off."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a trial with the smallest shapes")
    names = ["machine", "tests", "training", "decoding", "ladder"]
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    parser.add_argument("--wheels", type=Path, default=WHEELS, help="folder of packed wheels")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # `run` then ends its part
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "gpu.log"
    log.write_text("")
    print(unpack(options.wheels))
    end = time.monotonic() + SECONDS * (5 if options.tiny else 1)
    done: list[Part] = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for part in parts(options, work):
            if part.name in options.parts:
                seconds = min(part.seconds, end - time.monotonic())
                run(part, log=log, work=work, seconds=seconds)
                done.append(part)
                write(options.out, done, work)
                print(f"{part.name}: {part.fault or 'done'}, {part.took:.0f} s", flush=True)
                if part.fault:
                    print("\n".join(log.read_text().splitlines()[-12:]), flush=True)
    print(f"\n{(options.out / 'gpu.md').read_text()}")
    print("\n".join(line for line in log.read_text().splitlines() if line.startswith("left out")))
    faults = [f"{part.name} {part.fault}" for part in done if part.fault]
    print("; ".join(faults) if faults else "all parts done")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

"""Time and peak memory of loading GPT-2's largest size.

`PYTHONPATH=src:. python benchmarks/loading.py` writes random weights into a temporary folder
(6.2 GB for 1558M, and as much memory during the write). Each contestant, ours or transformers,
loads the weights in turn, in a separate process, and medians are printed. The files are in the page
cache, to exclude the disk from the measurement. After loading, eight ids run through the model, to
include the cost of work deferred by a lazy loader.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gptmill.model.gpt import SIZES, GPTConfig

ROUNDS = 3
CONTESTANTS = ("ours", "ours mapped", "transformers")
SHAPES = {
    "124M": "gpt2-small",
    "355M": "gpt2-medium",
    "774M": "gpt2-large",
    "1558M": "gpt2-xl",
    "tiny": "laptop",
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    """Write the weights, then measure each contestant in turn."""
    options = _options()
    if options.load:
        print(json.dumps(measured(options.load, Path(options.folder), DTYPES[options.dtype])))
        return
    with tempfile.TemporaryDirectory(dir=options.below) as name:
        folder = Path(name) / "weights"
        size = write(folder, options.shape, options.form)
        for file in folder.iterdir():
            _read_through(file)
        results: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
        for _ in range(options.rounds):
            for contestant in CONTESTANTS:
                results[contestant].append(_run(contestant, folder, options.dtype))
    _report(options, size, results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="1558M")
    parser.add_argument("--form", choices=["safetensors", "bin"], default="safetensors")
    parser.add_argument(
        "--dtype", choices=list(DTYPES), default="float32", help="data type of the loaded model"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--below", default=None, help="parent of the temporary folder")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the figures")
    parser.add_argument("--load", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def write(folder: Path, shape: str, form: str) -> int:
    """Write random weights in float32; return the number of bytes."""
    from gptmill.checkpoint.hf_config import SpecialIds, to_hugging_face
    from gptmill.checkpoint.layouts import HUGGING_FACE_GPT2
    from gptmill.checkpoint.mapping import file_tensors
    from gptmill.checkpoint.weights import save_safetensors
    from gptmill.files import write_json
    from gptmill.model.gpt import GPT

    config = GPTConfig(
        vocab_size=50257,
        context_length=1024,
        drop_rate=0.0,
        qkv_bias=True,
        tie_weights=True,
        **SIZES[SHAPES[shape]]._asdict(),
    )
    model = GPT(config, generator=torch.Generator().manual_seed(1))
    tensors = file_tensors(HUGGING_FACE_GPT2, model)
    folder.mkdir()
    if form == "safetensors":
        save_safetensors(folder / "model.safetensors", tensors, torch.float32)
    else:
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        torch.save(whole, folder / "pytorch_model.bin")
    ids = SpecialIds(50256, 50256, 50256)
    content = to_hugging_face(config, ids, "float32")
    write_json(folder / "config.json", {**content, "architectures": ["GPT2LMHeadModel"]})
    return sum(tensor.nbytes for tensor in tensors.values())


def _read_through(file: Path) -> None:
    with file.open("rb") as opened:
        while opened.read(2**24):
            pass


def _run(contestant: str, folder: Path, dtype: str) -> dict[str, float]:
    result = subprocess.run(
        [sys.executable, __file__, "--load", contestant, "--folder", folder, "--dtype", dtype],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
    )
    if result.returncode:
        raise RuntimeError(
            f"{contestant} ended with exit status {result.returncode}: {result.stderr[-2000:]}"
        )
    figures: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return figures


# The functions below run in the contestant's process.


def measured(contestant: str, folder: Path, dtype: torch.dtype) -> dict[str, float]:
    """Load a folder; return seconds and bytes."""
    load = _loader(contestant)
    before = _status("VmRSS")
    peak = Peak()
    with torch.no_grad(), peak:
        started, worked = time.perf_counter(), time.process_time()
        model = load(folder, dtype)
        loaded = time.perf_counter()
        model(torch.arange(8)[None])
        used = time.perf_counter()
    return {
        "load_seconds": loaded - started,
        "first_use_seconds": used - loaded,
        "cpu_seconds": time.process_time() - worked,
        "before": before,
        "peak": _status("VmHWM"),
        "peak_anonymous": peak.anonymous,
        "held": _status("VmRSS"),
    }


def _loader(contestant: str) -> Callable[[Path, torch.dtype], Any]:
    """Return a contestant's loader, imported before the clock starts."""
    if contestant.startswith("ours"):
        from gptmill.checkpoint.checkpoint import load_causal_lm

        mapped = contestant == "ours mapped"
        return lambda folder, dtype: load_causal_lm(folder, dtype=dtype, mapped=mapped)
    from transformers import AutoModelForCausalLM, GPT2LMHeadModel

    assert GPT2LMHeadModel  # force the lazy import now
    return lambda folder, dtype: AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def _status(key: str) -> int:
    """Return a memory figure of this process in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


class Peak:
    """Peak memory not backed by a file, sampled every 5 ms."""

    def __init__(self) -> None:
        self.anonymous = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.anonymous = max(self.anonymous, _status("RssAnon"))


def _report(
    options: argparse.Namespace, size: int, results: dict[str, list[dict[str, float]]]
) -> None:
    weights = size * DTYPES[options.dtype].itemsize // 4
    tools = ", ".join(f"{tool} {version(tool)}" for tool in ("torch", "transformers"))
    print(f"{platform.machine()}, {os.cpu_count()} cores, {tools}")
    print(
        f"{options.shape} from float32 {options.form} as {options.dtype}: {weights / 1e9:.2f} GB, "
        f"median of {options.rounds}; peaks are of the whole process, imports included"
    )
    medians: dict[str, dict[str, float]] = {}
    for contestant, rounds in results.items():
        row = {key: statistics.median(figures[key] for figures in rounds) for key in rounds[0]}
        medians[contestant] = row
        print(
            f"{contestant:>12}: load {row['load_seconds']:6.2f} s, first use "
            f"{row['first_use_seconds']:5.2f} s, processor {row['cpu_seconds']:5.2f} s, "
            f"peak {row['peak'] / 1e9:5.2f} GB "
            f"({row['peak'] / weights:.3f} of the weights), not backed by a file "
            f"{row['peak_anonymous'] / 1e9:5.2f} GB, before {row['before'] / 1e9:.2f} GB"
        )
    if options.out is not None:
        content = {"weights": weights, "shape": options.shape, "medians": medians}
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

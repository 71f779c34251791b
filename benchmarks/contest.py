"""Contestant processes, shared by the training and decoding benchmarks.

A contestant is a program of peers/ in a separate process, configured by a JSON argument. For each
number read from a line of standard input, the contestant does the given amount of work and
answers with a line of JSON. Between two lines the contestant is idle; several contestants can
therefore be measured in turn.
"""

import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gptmill.device import RuntimeConfig, pick
from tasks.project.environment import QUIET

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / ".state" / "bench"

BOOK_CACHED = "book with a cache"
# packages to install for each peer, because our own environment lacks them
PACKAGES = {
    "book": ["llms-from-scratch==1.0.19"],
    BOOK_CACHED: ["llms-from-scratch==1.0.14"],  # the last version with a working GPT-2 cache
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
PEERS = ["book", "litgpt", "transformers"]


@dataclass
class Contestant:
    """A running contestant with all answers received.

    A contestant whose process died does no more work; `error` holds the reason.
    """

    name: str
    task: dict[str, Any]
    process: subprocess.Popen[str]
    log: Path
    answers: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""

    def run(self, amount: int) -> None:
        """Request an amount of work and wait for the answer."""
        if self.error:
            return
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(f"{amount}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the log holds the reason
        line = self.process.stdout.readline()
        if line:
            self.answers.append(json.loads(line))
        else:
            lines = self.log.read_text(errors="replace").strip().splitlines()
            self.error = (lines or ["the process died without a message"])[-1]

    def stop(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.communicate()


def start(
    program: str, label: str, task: dict[str, Any], *, packages: str | None = None
) -> Contestant:
    """Start a program of peers/ as a contestant.

    The first request for work also waits for the program's setup. `packages` names a peer whose
    packages come before our environment's on the import path. Without `packages` the contestant is
    ours, and gets the environment variable that `make` sets for our own runs.
    """
    import_paths = [ROOT / "src", ROOT / "benchmarks"]
    environment = dict(os.environ)
    if packages is None:
        environment["THP_MEM_ALLOC_ENABLE"] = QUIET["THP_MEM_ALLOC_ENABLE"]
    else:
        import_paths.insert(0, _folder(packages))
    environment["PYTHONPATH"] = os.pathsep.join(map(str, import_paths))
    OUT.mkdir(parents=True, exist_ok=True)
    log = OUT / f"{program}-{label.replace(', ', '-').replace(' ', '-')}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [
                *(sys.executable, "-W", "ignore"),
                ROOT / "benchmarks" / "peers" / f"{program}.py",
                json.dumps(task),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            env=environment,
        )
    return Contestant(label, task, process, log)


def installed(peers: list[str]) -> list[str]:
    """Install the peers' packages once, below .state/bench/.

    Return the peers with installed packages.
    """
    available = []
    for name in peers:
        fault = _install(name)
        if fault is None:
            available.append(name)
        else:
            print(f"left out: {name} could not be installed ({fault})")
    return available


def _folder(peer: str) -> Path:
    return OUT / "packages" / peer.replace(" ", "-")


def _install(peer: str) -> str | None:
    """Install a peer's packages; return the error message, or None."""
    folder = _folder(peer)
    marker = folder.with_suffix(".done")
    if not PACKAGES[peer] or marker.exists():
        return None
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    result = subprocess.run([*command, *PACKAGES[peer]], capture_output=True, text=True)
    if result.returncode:
        return result.stderr.strip().splitlines()[-1]
    marker.touch()
    return None


def machine(device: str) -> dict[str, Any]:
    """Return the hardware and software versions behind the figures."""
    runtime = RuntimeConfig(
        device="cpu", precision="fp32", compile=False, micro_batch="auto", recompute=False
    )
    return {
        "cpu": pick(runtime).model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "load": round(os.getloadavg()[0], 1),  # average of the last minute: above about 1, wait
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def show_machine(facts: dict[str, Any]) -> None:
    """Print the machine's facts in one line."""
    print(", ".join(f"{name} {value}" for name, value in facts.items() if value is not None))

"""What the benches of training and of decoding share: peers, and contestants that take turns.

A contestant is a process of its own that reads a number a line, does as much work, and answers
with a line of JSON. Between two lines it is idle, so that several can be measured in turn. It is
a program in peers/, told what to do by one JSON argument.
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
# a peer's folder of packages that our own environment lacks, and what is put there
PACKAGES = {
    "book": ["llms-from-scratch==1.0.19"],
    BOOK_CACHED: ["llms-from-scratch==1.0.14"],  # the last whose GPT-2 reads its cache rightly
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
    """A running contestant and its answers so far; once it dies it is out, and `error` says why."""

    name: str
    task: dict[str, Any]
    process: subprocess.Popen[str]
    log: Path
    answers: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""

    def run(self, amount: int) -> None:
        """Have it do so much work, and wait for its answer."""
        if self.error:
            return
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(f"{amount}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # its last words tell
        line = self.process.stdout.readline()
        if line:
            self.answers.append(json.loads(line))
        else:
            said = self.log.read_text(errors="replace").strip().splitlines()
            self.error = (said or ["it died"])[-1]

    def stop(self) -> None:
        """End its process."""
        self.process.kill()
        self.process.communicate()


def start(
    program: str, label: str, task: dict[str, Any], *, packages: str | None = None
) -> Contestant:
    """Start a program of peers/; it sets itself up while it is waited for.

    `packages` names a peer whose packages it sees before those of our environment. Without, it is
    ours, and has what `make` sets for our own runs.
    """
    places = [ROOT / "src", ROOT / "benchmarks"]
    environment = dict(os.environ)
    if packages is None:
        environment["THP_MEM_ALLOC_ENABLE"] = QUIET["THP_MEM_ALLOC_ENABLE"]
    else:
        places.insert(0, _folder(packages))
    environment["PYTHONPATH"] = os.pathsep.join(map(str, places))
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
    """Put these peers' packages below .state/bench/, once; return those that are there."""
    found = []
    for name in peers:
        fault = _install(name)
        if fault is None:
            found.append(name)
        else:
            print(f"left out: {name}, which could not be installed ({fault})")
    return found


def _folder(peer: str) -> Path:
    return OUT / "packages" / peer.replace(" ", "-")


def _install(peer: str) -> str | None:
    """Return why a peer's packages could not be installed, or None."""
    folder = _folder(peer)
    done = folder.with_suffix(".done")
    if not PACKAGES[peer] or done.exists():
        return None
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    found = subprocess.run([*command, *PACKAGES[peer]], capture_output=True, text=True)
    if found.returncode:
        return found.stderr.strip().splitlines()[-1]
    done.touch()
    return None


def machine(device: str) -> dict[str, Any]:
    """Return what the figures were measured on."""
    runtime = RuntimeConfig(
        device="cpu", precision="fp32", compile=False, micro_batch="auto", recompute=False
    )
    return {
        "cpu": pick(runtime).model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "load": round(os.getloadavg()[0], 1),  # of the last minute: above about 1, wait
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def show_machine(found: dict[str, Any]) -> None:
    """Print it in a line."""
    print(", ".join(f"{name} {value}" for name, value in found.items() if value is not None))

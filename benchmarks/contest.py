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
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from packages import OUT, ROOT, folder

from gptmill.device import RuntimeConfig, pick
from tasks.project.environment import QUIET, SPINNING

# the variables of our own runs that change their speed
HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": QUIET["THP_MEM_ALLOC_ENABLE"]}
OURS = {**HUGE_PAGES, **SPINNING}


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
        self.request(amount)
        self.receive()

    def request(self, amount: int) -> None:
        """Request an amount of work."""
        assert self.process.stdin
        try:
            self.process.stdin.write(f"{amount}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the log holds the reason

    def receive(self) -> None:
        """Wait for the answer to a request."""
        if self.error:
            return
        assert self.process.stdout
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
    program: str,
    label: str,
    task: dict[str, Any],
    *,
    packages: str | None = None,
    environment: Mapping[str, str] = OURS,
) -> Contestant:
    """Start a program of peers/ as a contestant.

    The first request for work also waits for the program's setup. `packages` names a peer whose
    packages come before our environment's on the import path. Without `packages` the contestant is
    ours, and gets the variables of `environment`, by default those of our own runs.
    """
    import_paths = [ROOT / "src", ROOT / "benchmarks", folder("common")]
    variables = dict(os.environ)
    if packages is None:
        variables |= environment
    else:
        import_paths.insert(0, folder(packages))
    variables["PYTHONPATH"] = os.pathsep.join(map(str, import_paths))
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
            env=variables,
        )
    return Contestant(label, task, process, log)


def warm_up(contestants: list[Contestant], amount: int, *, together: bool) -> None:
    """Have each contestant set up and do a first amount of work.

    Side by side the setups and the compilers share the cores; all arrays have to fit into memory.
    """
    if not together:
        for contestant in contestants:
            contestant.run(amount)
        return
    for contestant in contestants:
        contestant.request(amount)
    for contestant in contestants:
        contestant.receive()


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

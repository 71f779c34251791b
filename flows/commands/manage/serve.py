"""`make serve`: register prefect.yaml's deployment and run a worker.

The worker executes the deployment's runs until Ctrl-C.
"""

import os
import subprocess
import sys

from flows.servers import answers, running_prefect
from tasks.project.environment import ROOT

POOL = "gptmill"


def main(arguments: list[str]) -> int:
    """Register the deployment, then run a worker in the foreground."""
    if arguments:
        raise ValueError(f"`make serve` takes no arguments; given: {' '.join(arguments)}")
    url = os.environ.get("PREFECT_API_URL") or running_prefect()
    if not url or not answers(url.rstrip("/") + "/health"):
        raise ValueError("no Prefect server is running: start `make ui` in a second terminal first")
    environment = {
        **os.environ,
        "PREFECT_API_URL": url,
        "GPTMILL_ROOT": str(ROOT),  # read by prefect.yaml, in place of a machine's path
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
    }

    def prefect(*words: str) -> None:
        command = [sys.executable, "-m", "prefect", *words]
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if result.returncode != 0:
            raise ValueError(f"prefect {' '.join(words)}: {result.stderr.strip() or result.stdout}")

    prefect("work-pool", "create", POOL, "--type", "process", "--overwrite")
    prefect("--no-prompt", "deploy", "--all")
    site = url.removesuffix("/api")
    print("deployment pipeline/nightly is registered: start a run or enable the schedule")
    print(f"at {site}/deployments. This worker executes the runs, until Ctrl-C.", flush=True)
    os.chdir(ROOT)
    worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL]
    os.execve(sys.executable, [*worker, "--type", "process"], environment)

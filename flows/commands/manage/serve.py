"""`make serve`: register prefect.yaml's deployment and run a worker.

The worker executes the deployment's runs until Ctrl-C.
"""

import os
import signal
import subprocess
import sys

from flows.prefect_server import PAGES, running_prefect
from flows.servers import answers
from tasks.processes.process import leashed
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
        "PREFECT_UI_URL": f"{url.rstrip('/').removesuffix('/api')}/{PAGES}",
        "GPTMILL_ROOT": str(ROOT),  # read by prefect.yaml, in place of a machine's path
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
    }

    def prefect(*words: str) -> None:
        command = leashed([sys.executable, "-m", "prefect", *words])
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if result.returncode != 0:
            raise ValueError(f"prefect {' '.join(words)}: {result.stderr.strip() or result.stdout}")

    prefect("work-pool", "create", POOL, "--type", "process", "--overwrite")
    prefect("--no-prompt", "deploy", "--all")
    site = url.removesuffix("/api")
    print("deployment pipeline/nightly is registered: start a run or enable the schedule")
    print(
        f"at {site}/{PAGES}/deployments. This worker executes the runs, until Ctrl-C.", flush=True
    )
    os.chdir(ROOT)
    # a script's background jobs ignore Ctrl-C's signal, by which Prefect's worker ends itself
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # without a handler of this process: SIGTERM reaches the worker from its first moment
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL]
    os.execve(sys.executable, [*worker, "--type", "process"], environment)

"""`make serve`: register prefect.yaml's deployment and work for it, until Ctrl-C."""

import os
import subprocess
import sys

from flows.servers import answers, running_prefect
from tasks.project.environment import ROOT

POOL = "gptmill"


def main(arguments: list[str]) -> int:
    """Register the deployment, then run a process worker in the foreground."""
    if arguments:
        raise ValueError(f"`make serve` takes no words; given: {' '.join(arguments)}")
    url = os.environ.get("PREFECT_API_URL") or running_prefect()
    if not url or not answers(url.rstrip("/") + "/health"):
        raise ValueError("no Prefect server is up: start `make ui` in another terminal first")
    environment = {
        **os.environ,
        "PREFECT_API_URL": url,
        "GPTMILL_ROOT": str(ROOT),  # prefect.yaml asks for it, so that it names no machine's path
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
    }

    def prefect(*words: str) -> None:
        command = [sys.executable, "-m", "prefect", *words]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise ValueError(f"prefect {' '.join(words)}: {done.stderr.strip() or done.stdout}")

    prefect("work-pool", "create", POOL, "--type", "process", "--overwrite")
    prefect("--no-prompt", "deploy", "--all")
    site = url.removesuffix("/api")
    print(f"deployment pipeline/nightly is at {site}/deployments: run it there, or switch its")
    print("schedule on. This worker takes its runs, until Ctrl-C.", flush=True)
    os.chdir(ROOT)
    worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL]
    os.execve(sys.executable, [*worker, "--type", "process"], environment)

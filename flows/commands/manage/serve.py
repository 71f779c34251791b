"""`make serve`: register prefect.yaml's deployments and run a worker.

The worker executes the deployments' runs until Ctrl-C. With ALERT_URL=https://..., pipeline runs
that fail, crash or are cancelled call the webhook at the address.
"""

import os
import signal
import subprocess
import sys

from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.nights.alerts import HEARTBEAT_S, alert_url, set_up
from flows.prefect_server import PAGES, check_login, running_prefect
from flows.servers import answers
from tasks.processes.process import leashed
from tasks.project.environment import ROOT

POOL = "gptmill"


def main(arguments: list[str]) -> int:
    """Register the deployments, then run a worker in the foreground."""
    if arguments:
        raise ValueError(f"`make serve` takes no arguments; given: {' '.join(arguments)}")
    url = os.environ.get("PREFECT_API_URL") or running_prefect()
    if not url or not answers(url.rstrip("/") + "/health"):
        raise ValueError("no Prefect server is running: start `make ui` in a second terminal first")
    check_login(url)
    alert = alert_url()
    environment = {
        **os.environ,
        "PREFECT_API_URL": url,
        "PREFECT_UI_URL": f"{url.rstrip('/').removesuffix('/api')}/{PAGES}",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S),
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
    with temporary_settings(updates={PREFECT_API_URL: url}):
        set_up(alert)
    if alert is not None:
        print("failed, crashed and cancelled pipeline runs call the webhook in ALERT_URL")
    site = url.removesuffix("/api")
    print("deployments nightly, fine-tuning and evaluation: start a run or enable the schedule")
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

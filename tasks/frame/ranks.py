"""A stage in several processes: torchrun's own launcher starts them, here or on several nodes.

The process that DVC started checks what the stage reads, then becomes the launcher: it starts
one process a device, each running this same stage with torchrun's variables set, and ends them
all when one of them ends badly. Nothing here decides what is computed.

Where the processes are is the environment's to say. `GPTMILL_NODES`, `GPTMILL_NODE` (0 is the
one that runs DVC) and `GPTMILL_RENDEZVOUS` (HOST:PORT on node 0) make a launcher one of several.
Started by torchrun or srun itself, a process joins their group and launches nothing.
"""

import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.processes.process import Terminated, killed_by

WORKER = "GPTMILL_WORKER"
LOST = 76
"""Exit status of a rank whose only trouble is that another one is gone."""

SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}


class RanksError(Exception):
    """A process of the stage ended badly; its words, and the status to end with."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def joined() -> bool:
    """Return whether this process is one of a group, and give torchrun's names to srun's.

    Raises ValueError where srun's own variables do not say where the group meets.
    """
    environment = os.environ
    # a batch script has most of these too; only what srun starts has a step
    by_srun = "SLURM_STEP_ID" in environment and int(environment.get("SLURM_NTASKS", "1")) > 1
    if by_srun and not {"RANK", "GPTMILL_NODES"} & set(environment):
        if "MASTER_ADDR" not in environment:
            raise ValueError(
                "srun started this as one of several tasks, but MASTER_ADDR is not set: export the "
                "name of the first node (scontrol show hostnames | head -1) before srun"
            )
        environment.setdefault("MASTER_PORT", "29500")
        environment.update({name: environment[slurm] for name, slurm in SLURM.items()})
    return "RANK" in environment


def follows() -> bool:
    """Return whether this process is one of a group, and not its first."""
    return joined() and os.environ["RANK"] != "0"


def launches(processes: int) -> bool:
    """Return whether a stage with so many processes on this machine is still to be launched."""
    return not joined() and (processes > 1 or _nodes()[0] > 1)


def launch(stage: str, processes: int) -> None:
    """Run a stage in so many processes on this machine, with those of the other nodes if any.

    Raises RanksError with the words of the process that failed first, and what a signal raises.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # what it has to say, the exception below says in one sentence
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    nodes, node, meeting = _nodes()
    _set_environment(processes, nodes)
    with tempfile.TemporaryDirectory() as logs:
        config = LaunchConfig(
            min_nodes=nodes,
            max_nodes=nodes,
            nproc_per_node=processes,
            run_id=stage,
            rdzv_backend="static" if nodes > 1 else "c10d",
            rdzv_endpoint=meeting,
            rdzv_configs={"rank": node, "timeout": 600},
            local_addr=None if nodes > 1 else "127.0.0.1",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
            shutdown_timeout=30,
        )
        try:
            elastic_launch(config, sys.executable)("-m", "tasks", stage)
        except ChildFailedError as error:
            if node == 0:
                _close_run()
            raise _first(error.failures, nodes * processes) from None
        except SignalException as stop:
            if stop.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise Terminated(stop.sigval) from None


def is_lost(error: Exception) -> bool:
    """Return whether a rank's only trouble is that another one is gone."""
    from gptmill.training.distributed import is_lost

    return "RANK" in os.environ and is_lost(error)


def failed(message: str) -> bool:
    """Leave a worker's words to its launcher; return whether there is one that passes them on."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path and "RANK" in os.environ:
        Path(path).write_text(json.dumps({"message": message}), encoding="utf-8")
    return {WORKER, "RANK"} <= set(os.environ)


def _nodes() -> tuple[int, int, str]:
    """Return how many nodes there are, which this is, and where they meet."""
    environment = os.environ
    nodes = int(environment.get("GPTMILL_NODES", "1"))
    if nodes == 1:
        return 1, 0, "127.0.0.1:0"
    missing = [n for n in ("GPTMILL_NODE", "GPTMILL_RENDEZVOUS") if n not in environment]
    if missing:
        raise ValueError(f"GPTMILL_NODES is {nodes}, but {' and '.join(missing)} is not set")
    node = int(environment["GPTMILL_NODE"])
    if not 0 <= node < nodes:
        raise ValueError(
            f"GPTMILL_NODE is {node}; with GPTMILL_NODES {nodes} it is 0 to {nodes - 1}"
        )
    return nodes, node, environment["GPTMILL_RENDEZVOUS"]


def _set_environment(processes: int, nodes: int) -> None:
    import torch

    os.environ[WORKER] = "1"
    # the processes share the cores; torch's default would have each take all of them
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // processes)))
    if nodes == 1:
        loopback = "lo" if sys.platform == "linux" else "lo0"
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)


def _first(failures: Mapping[int, Any], size: int) -> RanksError:
    """Return what ended the group: not those that were ended for it, or lost by it."""
    sent = (-signal.SIGTERM, 128 + signal.SIGTERM)
    after = {rank: found.exitcode in (*sent, LOST) for rank, found in failures.items()}
    rank = min(failures, key=lambda rank: after[rank])
    found = failures[rank]
    if found.exitcode < 0:
        return RanksError(f"rank {rank} of {size} {killed_by(-found.exitcode)}", 1)
    if found.exitcode == LOST:
        words = f"a rank on another node is gone, as its own log tells ({found.message})"
        return RanksError(f"rank {rank} of {size}: {words}", 1)
    words = found.message if Path(found.error_file).exists() else f"exited with {found.exitcode}"
    # a mistake of the user's is every rank's, and none's in particular
    return RanksError(
        words if found.exitcode == 2 else f"rank {rank} of {size}: {words}", found.exitcode
    )


def _close_run() -> None:
    """Mark the stage's MLflow run as ended where the rank that kept it was killed."""
    from tasks.tracking.runs import close_dead_runs, connect

    close_dead_runs(connect())

"""A stage in several processes, started by torchrun's launcher on one node or several.

The process that DVC started checks the inputs of the stage, then becomes the launcher. The
launcher starts one process per device, each running the same stage with torchrun's variables, and
stops all processes after the failure of any. The launcher cannot change a result.

Environment variables set the nodes: `GPTMILL_NODES`, `GPTMILL_NODE` (0 runs DVC) and
`GPTMILL_RENDEZVOUS` (HOST:PORT on node 0) make a launcher part of a group of launchers. A process
started by torchrun or srun joins their group and launches nothing.
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
"""Exit status of a rank that failed only because another rank is gone."""

SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}


class RanksError(Exception):
    """A process of the stage failed: the message, and the exit status to use."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def joined() -> bool:
    """Return whether this process belongs to a group; translate srun's variables to torchrun's.

    Raises ValueError if srun's variables lack a rendezvous address.
    """
    environment = os.environ
    # a batch script has most of these variables too, but only a task of srun has a step
    by_srun = "SLURM_STEP_ID" in environment and int(environment.get("SLURM_NTASKS", "1")) > 1
    if by_srun and not {"RANK", "GPTMILL_NODES"} & set(environment):
        if "MASTER_ADDR" not in environment:
            raise ValueError(
                "srun started several tasks, but MASTER_ADDR is not set: export the "
                "name of the first node (scontrol show hostnames | head -1) before srun"
            )
        environment.setdefault("MASTER_PORT", "29500")
        environment.update({name: environment[slurm] for name, slurm in SLURM.items()})
    return "RANK" in environment


def follows() -> bool:
    """Return whether this process belongs to a group and is not the first rank."""
    return joined() and os.environ["RANK"] != "0"


def share_machine(size: int) -> bool:
    """Return whether all `size` processes of a group are known to run on this machine."""
    on_one_node = size == 1 or os.environ.get("SLURM_STEP_NUM_NODES") == "1"
    return on_one_node or os.environ.get("LOCAL_WORLD_SIZE") == str(size)


def launches(processes: int) -> bool:
    """Return whether a stage with `processes` processes per node needs a launcher."""
    return not joined() and (processes > 1 or _nodes()[0] > 1)


def launch(stage: str, processes: int) -> None:
    """Run a stage in `processes` processes on this node, together with any further nodes.

    Raises RanksError with the message of the first failed process, and re-raises signals.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # the exception below reports failures in one sentence
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
    """Return whether a rank failed only because another rank is gone."""
    from gptmill.training.distributed import is_lost

    return "RANK" in os.environ and is_lost(error)


def failed(message: str) -> bool:
    """Pass a worker's message to the launcher; return whether a launcher exists."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path and "RANK" in os.environ:
        Path(path).write_text(json.dumps({"message": message}), encoding="utf-8")
    return {WORKER, "RANK"} <= set(os.environ)


def _nodes() -> tuple[int, int, str]:
    """Return the number of nodes, this node's index, and the rendezvous address."""
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
    # the processes share the cores; by default, torch uses all cores in each process
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // processes)))
    if nodes == 1:
        loopback = "lo" if sys.platform == "linux" else "lo0"
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)


def _first(failures: Mapping[int, Any], size: int) -> RanksError:
    """Return the first cause: not a rank that was stopped, or lost a peer, as a consequence."""
    sent = (-signal.SIGTERM, 128 + signal.SIGTERM)
    after = {rank: failure.exitcode in (*sent, LOST) for rank, failure in failures.items()}
    rank = min(failures, key=lambda rank: after[rank])
    failure = failures[rank]
    if failure.exitcode < 0:
        return RanksError(f"rank {rank} of {size} {killed_by(-failure.exitcode)}", 1)
    if failure.exitcode == LOST:
        words = f"a rank on another node is gone, see the log of the node ({failure.message})"
        return RanksError(f"rank {rank} of {size}: {words}", 1)
    words = (
        failure.message if Path(failure.error_file).exists() else f"exited with {failure.exitcode}"
    )
    # a mistake of the user concerns all ranks
    return RanksError(
        words if failure.exitcode == 2 else f"rank {rank} of {size}: {words}", failure.exitcode
    )


def _close_run() -> None:
    """Close the stage's MLflow run after the first rank was killed."""
    from tasks.tracking.runs import close_dead_runs
    from tasks.tracking.store import connect

    close_dead_runs(connect())
